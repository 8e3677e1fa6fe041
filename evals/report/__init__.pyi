from . import pictures
from .build import make_report
from .control import control_picture, control_tables
from .document import Document
from .pictures import COLOURS, Picture, training_curves
from .runs import CONTROL, read_control
from .settings import ReportSettings

__all__ = [
    "COLOURS",
    "CONTROL",
    "Document",
    "Picture",
    "ReportSettings",
    "control_picture",
    "control_tables",
    "make_report",
    "pictures",
    "read_control",
    "training_curves",
]
