"""`python -m train.prepare --source ... --out DIR`: a corpus becomes tokenized shards.

The same command again goes on after an interruption, or says that all is there.
"""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

import sys
from collections.abc import Sequence

from mhc_model.settings import parse_command_line, reports_errors
from train.prepare.config import PrepareConfig


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    config = parse_command_line(PrepareConfig, "python -m train.prepare", __doc__ or "", argv)
    # Before Ray is imported, as `init_arguments` asks.
    ray_arguments = config.ray.init_arguments()
    from train.prepare.on_ray import RayTasks
    from train.prepare.run import prepare

    tasks = RayTasks(config, ray_arguments)
    prepare(config, tasks, tasks.ready)
    return 0


if __name__ == "__main__":
    sys.exit(main())
