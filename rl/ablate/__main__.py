"""`python -m rl.ablate --config configs/ablate_demo.yaml --checkpoint DIR --name NAME`."""

from __future__ import annotations

from mhc_model.running import supervise

if __name__ == "__main__":
    supervise(__spec__)

from collections.abc import Sequence

from mhc_model.settings import parse_command_line, reports_errors
from rl.ablate.config import AblateConfig


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    description = "Compares ways to choose gates on held-out problems, under one budget."
    config = parse_command_line(AblateConfig, "python -m rl.ablate", description, argv)
    # Ray reads the authentication mode while it is imported: this comes first.
    ray_arguments = config.ray.init_arguments()
    from rl.ablate.run import run_ablation

    run_ablation(config, ray_arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
