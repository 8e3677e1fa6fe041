"""A pretrained model as a checkpoint of ours, plain or with mHC streams.

    python -m mhc_model convert --source DIR_OR_HUB_NAME_OR_GGUF --streams 4 --out DIR

Whatever its gates, the converted model equals the original. It can learn all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mhc_model.mhc_config import Projection
from mhc_model.settings import Settings, parse_command_line


class ConvertSettings(Settings):
    """Arguments of the command."""

    source: str = Field(
        description="a directory with config.json and safetensors, a GGUF file, a name on the "
        "Hugging Face hub, or a model of ours, whoever saved it"
    )
    out: str = Field(description="the checkpoint directory to create")
    streams: int | None = Field(
        None,
        ge=0,
        le=8,
        description="residual streams; 0 keeps the model plain; none is 4, or those of a model "
        "of ours",
    )
    preset: str = Field("default", description="of the hyper-connections")
    projection: Projection | None = Field(
        None, description="how logits become H_res; none is the preset's"
    )
    static: bool = Field(False, description="hyper-connections that do not depend on the token")
    single_pass: bool = Field(False, description="of the hyper-connections")
    collapse: Literal["mean", "learned"] = Field(
        "mean", description="how the streams become one after the last layer"
    )
    max_seq_len: int | None = Field(None, ge=1, description="a context shorter than the original's")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of the matrices; none keeps the source's"
    )
    overwrite: bool = Field(False, description="replace an existing checkpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    settings = parse_command_line(
        ConvertSettings, "python -m mhc_model convert", __doc__ or "", argv
    )
    import torch

    switches = {
        "projection": settings.projection,
        "dynamic": False if settings.static else None,
        "single_pass": settings.single_pass or None,
        "collapse": None if settings.collapse == "mean" else settings.collapse,
    }

    from mhc_model.conversion import convert

    checkpoint = convert(
        settings.source,
        settings.out,
        settings.streams,
        settings.preset,
        mhc={name: value for name, value in switches.items() if value is not None},
        max_seq_len=settings.max_seq_len,
        dtype=None if settings.dtype is None else getattr(torch, settings.dtype),
        overwrite=settings.overwrite,
    )
    model = checkpoint.model
    kind = "plain" if model.config.mhc is None else f"{model.config.mhc.n_streams} streams"
    print(
        f"{checkpoint.path}: {kind}, {model.count_parameters():,} parameters, "
        f"{'no tokenizer' if checkpoint.tokenizer is None else 'with its tokenizer'}, "
        f"content hash {checkpoint.content_hash[:12]}"
    )
    return 0
