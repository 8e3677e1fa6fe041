"""`python -m mhc_model inspect`: what a checkpoint's streams, gates and mixing do on a text.

python -m mhc_model inspect runs/mhc
python -m mhc_model inspect runs/mhc --layer 2 --ascii
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from tyro.conf import Positional

from mhc_model.settings import Settings, parse_command_line

TEXT = (
    "Question: Tom has 7 apples and buys 5 more apples. How many apples does Tom have now?\n"
    "Answer: Tom has 7 + 5 = 12 apples.\n#### 12"
)


class InspectSettings(Settings):
    """Configuration of `python -m mhc_model inspect`."""

    checkpoint: Positional[str] = Field(description="checkpoint or run directory")
    layer: int | None = Field(
        None, ge=0, description="show the matrices of this layer; none shows all in short"
    )
    ascii: bool = Field(False, description="draw matrices and figures as shades and bars")
    text: str = Field(TEXT, description="what the model reads meanwhile")
    gates: str = Field(
        "learned",
        description="learned; 1, L or 2L numbers separated by commas; or the name of a behaviour",
    )
    device: str = Field("cpu", description="cpu, cuda, cuda:0, ...")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what was asked for."""
    settings = parse_command_line(
        InspectSettings,
        "mhc_model inspect",
        "Shows what a checkpoint's streams, gates and mixing do on a text.",
        argv,
    )
    from mhc_model.checkpoint import load_checkpoint
    from mhc_model.gates import parse_gates
    from mhc_model.routing import inspect_checkpoint

    loaded = load_checkpoint(settings.checkpoint, settings.device)
    gates = parse_gates(settings.gates)
    for part in inspect_checkpoint(loaded, settings.text, gates, settings.layer, settings.ascii):
        print(part)
    return 0
