"""`python -m train --config FILE --name NAME`: trains a model; the same name again resumes."""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

import os
import sys
from collections.abc import Sequence

from mhc_model.settings import parse_command_line, reports_errors
from train.config import TrainConfig


def summary(config: TrainConfig) -> str:
    """What --dry-run says besides: size, FLOPs, memory and time."""
    if config.init_from is not None and not os.path.isdir(config.init_from):
        return f"the model comes from {config.init_from}, which is not there (yet): no estimate"
    # Imported here: --help and a start need no estimate, and torch takes a second.
    from train.estimate import estimate

    return "\n# ".join(estimate(config).lines())


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    config = parse_command_line(TrainConfig, "python -m train", __doc__ or "", argv, summary)
    # Ray reads the authentication mode while it is imported, so this comes first. And --help,
    # --dry-run and configuration errors need not wait for the import.
    ray_arguments = config.ray.init_arguments()
    from train.launch import launch

    launch(config, ray_arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
