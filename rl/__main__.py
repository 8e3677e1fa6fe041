"""`python -m rl --config configs/demo_rl.yaml --checkpoint DIR --name NAME`."""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

from collections.abc import Sequence

from mhc_model.settings import parse_command_line, reports_errors
from rl.config import RLConfig


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    description = "Tunes the gates of a frozen mHC model with PPO on problems."
    config = parse_command_line(RLConfig, "python -m rl", description, argv)
    # Ray reads the authentication mode while it is imported, so this comes first; and --help
    # and mistyped flags need not wait for the import.
    ray_arguments = config.ray.init_arguments()
    from rl.tuning import run_tuning

    run_tuning(config, ray_arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
