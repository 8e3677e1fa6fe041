"""Whether a checkpoint is whole and does what a model of ours must do.

python -m mhc_model validate-model --checkpoint DIR
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from mhc_model.settings import Settings, parse_command_line


class ValidateModelSettings(Settings):
    """Arguments of the command."""

    checkpoint: str = Field(description="a checkpoint or run directory")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 1 if a check fails."""
    settings = parse_command_line(
        ValidateModelSettings, "python -m mhc_model validate-model", __doc__ or "", argv
    )
    from mhc_model.checkpoint import validate_model

    checks = validate_model(settings.checkpoint)
    for check in checks:
        print(f"{'ok    ' if check.passed else 'FAILED'} {check.name:10} {check.finding}")
    return 0 if all(check.passed for check in checks) else 1
