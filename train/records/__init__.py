"""What a run leaves in its directory, and what a resumed run finds there.

In: a model, optimizer states, rows of metrics. Out: checkpoints by step, metrics.jsonl, and the
metrics in TensorBoard and other trackers. May import train.config and mhc_model.

    run_directory.py  `RunDirectory`: on a disk or in a bucket
    trackers.py       Weights & Biases, MLflow
    metrics.py        `MetricsLog`: a row a step; `Progress`: a line to read
    checkpoints.py    a step's checkpoint, where a run goes on, which checkpoint is the best
"""

from train.records.checkpoints import Best, Resume, find_resume, load_step, save_step
from train.records.metrics import MetricsLog, Progress, read_rows
from train.records.run_directory import RunDirectory, step_name
from train.records.trackers import Tracker, import_tracker, make_trackers

__all__ = [
    "Best",
    "MetricsLog",
    "Progress",
    "Resume",
    "RunDirectory",
    "Tracker",
    "find_resume",
    "import_tracker",
    "load_step",
    "make_trackers",
    "read_rows",
    "save_step",
    "step_name",
]
