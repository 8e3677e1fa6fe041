"""`python -m rl.steerable --config configs/steerable.yaml`."""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

from collections.abc import Sequence

from mhc_model.settings import parse_command_line, reports_errors
from rl.steerable.config import SteerableConfig


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if everything holds, 1 if something does not, 2 after an error
    that the user can mend."""
    description = "Trains a model whose right gates are known, and proves that RL finds them."
    config = parse_command_line(SteerableConfig, "python -m rl.steerable", description, argv)
    # Ray reads the authentication mode while it is imported: this comes first.
    ray_arguments = config.ablation.ray.init_arguments()
    from rl.steerable.proof import prove

    checks = prove(config, ray_arguments)
    return 0 if all(check.holds for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
