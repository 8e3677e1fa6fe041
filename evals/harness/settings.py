"""Configuration of `python -m evals.harness`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evals.settings import MAX_TOKENS
from mhc_model.settings import Settings


class HarnessSettings(Settings):
    """Configuration of `python -m evals.harness`."""

    checkpoint: str = Field(
        description="checkpoint or run directory; for hf any directory that transformers reads"
    )
    tasks: tuple[str, ...] = Field(min_length=1, description="names of the harness's tasks")
    gates: str = Field("learned", description="as --gates of python -m evals; not for hf")
    backend: Literal["engine", "hf"] = Field(
        "engine", description="our engine, or the harness's own model `hf`"
    )
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="of the harness's model hf; ours computes in float32"
    )
    data: str | None = Field(
        None,
        description="a directory with gsm8k/, hellaswag/ and arc_easy/ for the tasks that have "
        "one there; none reads everything from the hub",
    )
    limit: int | None = Field(None, ge=1, description="the first N problems; none takes all")
    bos: bool = Field(True, description="put the document separator before every text")
    batch: int = Field(16, ge=1, description="sequences at once")
    max_tokens: int = Field(MAX_TOKENS, ge=1, description="most tokens of a generated answer")
    device: str | None = Field(None, description="cpu, cuda, ...; none is CUDA if there is one")
    out: str | None = Field(None, description="file for the harness's results with all samples")
    agree: str | None = Field(
        None, description="results directory of python -m evals whose samples should be the same"
    )
