"""`python -m rl.steerable --config configs/steerable.yaml`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mhc_model.errors import MHCError
from mhc_model.settings import parse_command_line
from rl.steerable.config import SteerableConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if everything holds, 1 if something does not, 2 after an error
    that the user can mend."""
    try:
        description = "Trains a model whose right gates are known, and proves that RL finds them."
        config = parse_command_line(SteerableConfig, "python -m rl.steerable", description, argv)
        # Ray reads the authentication mode while it is imported: this comes first.
        ray_arguments = config.ablation.ray.init_arguments()
        from rl.steerable.proof import prove

        checks = prove(config, ray_arguments)
    except MHCError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(check.holds for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
