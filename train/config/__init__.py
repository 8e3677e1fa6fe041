"""What a training run is: the configuration of `python -m train --config FILE --name NAME`.

In: values of a YAML file and of flags. Out: `TrainConfig`, checked. May import mhc_model's ground
(settings, config) only: --help and --dry-run read it before anything else.

    data.py   `DataConfig`: what is trained on and held out, and the vocabulary
    parts.py  optimizer, workers, samples, trackers
    run.py    `TrainConfig`: all of it, and what a resumed run may change
"""

from train.config.data import DataConfig
from train.config.parts import OptimizerConfig, SamplesConfig, TrackersConfig, WorkersConfig
from train.config.run import FREE_ON_RESUME, TrainConfig

__all__ = [
    "FREE_ON_RESUME",
    "DataConfig",
    "OptimizerConfig",
    "SamplesConfig",
    "TrackersConfig",
    "TrainConfig",
    "WorkersConfig",
]
