"""A checkpoint of ours as transformers' own class has it, without our code.

    python -m mhc_model export --checkpoint DIR --out DIR

Their classes have no streams. A converted model whose streams are still as they started is the
original, and its tensors come back bit for bit. Once the streams have learned, leaving them out
gives another model, which must be asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field

from mhc_model.settings import Settings, parse_command_line


class ExportSettings(Settings):
    """Arguments of the command."""

    checkpoint: str = Field(description="a checkpoint or run directory")
    out: str = Field(description="the directory to create")
    drop_streams: bool = Field(False, description="leave out streams that have learned")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    settings = parse_command_line(ExportSettings, "python -m mhc_model export", __doc__ or "", argv)
    from mhc_model.conversion import export

    out = export(settings.checkpoint, settings.out, drop_streams=settings.drop_streams)
    print(f"{out}: for {json.loads((out / 'config.json').read_text())['architectures'][0]}")
    return 0
