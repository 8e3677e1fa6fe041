from .figures import figures_by_level, figures_of
from .measure import measure_control
from .points import Point, control_points
from .settings import ControlSettings

__all__ = [
    "ControlSettings",
    "Point",
    "control_points",
    "figures_by_level",
    "figures_of",
    "measure_control",
]
