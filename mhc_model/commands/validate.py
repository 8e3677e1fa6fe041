"""Whether a converted model is the original: logits, every sublayer, and what is generated.

    python -m mhc_model validate --original DIR_OR_HUB_NAME_OR_GGUF --converted CHECKPOINT

The original runs in transformers' own class, so the check does not rest on our decoder; or it is
another checkpoint of ours. Both run in float32 on the CPU. Errors are the largest difference over
the largest value. The output of a single sublayer rounds more than the logits do, where it is small
beside the residual stream: ten times the tolerance is let pass there.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from mhc_model.settings import Settings, parse_command_line


class ValidateSettings(Settings):
    """Arguments of the command."""

    original: str = Field(description="what was converted, or another checkpoint of ours")
    converted: str = Field(description="the checkpoint directory")
    tolerance: float = Field(1e-5, gt=0.0, description="largest relative error allowed")
    max_new_tokens: int = Field(16, ge=0, description="tokens of each greedy completion; 0: none")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 1 if the models differ."""
    settings = parse_command_line(
        ValidateSettings, "python -m mhc_model validate", __doc__ or "", argv
    )
    from mhc_model.conversion import validate_equivalence

    result = validate_equivalence(
        settings.original,
        settings.converted,
        settings.tolerance,
        max_new_tokens=settings.max_new_tokens,
    )
    print(result)
    return 0 if result.passed else 1
