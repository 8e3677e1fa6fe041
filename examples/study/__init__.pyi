from .config import CalibrationSettings, StudyConfig
from .plan import Step, calibration_steps, seed_steps
from .report import write_report
from .run import Runner, StepFailed
from .seeds import SeedDifference, crossed_bootstrap, seed_difference
from .study import run_study

__all__ = [
    "CalibrationSettings",
    "Runner",
    "SeedDifference",
    "Step",
    "StepFailed",
    "StudyConfig",
    "calibration_steps",
    "crossed_bootstrap",
    "run_study",
    "seed_difference",
    "seed_steps",
    "write_report",
]
