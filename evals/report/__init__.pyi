from . import pictures
from .build import make_report
from .document import Document
from .pictures import COLOURS, Picture, training_curves
from .settings import ReportSettings

__all__ = [
    "COLOURS",
    "Document",
    "Picture",
    "ReportSettings",
    "make_report",
    "pictures",
    "training_curves",
]
