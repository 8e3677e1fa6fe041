from .config import SteerableConfig, Variant, expressible
from .proof import Check, prove
from .task import all_problems, kind_of, right_gates, with_digit
from .training import train_model

__all__ = [
    "Check",
    "SteerableConfig",
    "Variant",
    "all_problems",
    "expressible",
    "kind_of",
    "prove",
    "right_gates",
    "train_model",
    "with_digit",
]
