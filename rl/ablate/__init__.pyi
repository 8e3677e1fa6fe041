from .arms import CONSTANT, KNOWN, LEARNED, METHODS, PPO, Arm, parse_arm
from .config import AblateConfig
from .findings import Findings
from .held_out import HeldOut
from .report import write_report
from .run import run_ablation
from .study import Study

__all__ = [
    "CONSTANT",
    "KNOWN",
    "LEARNED",
    "METHODS",
    "PPO",
    "AblateConfig",
    "Arm",
    "Findings",
    "HeldOut",
    "Study",
    "parse_arm",
    "run_ablation",
    "write_report",
]
