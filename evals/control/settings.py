"""Configuration of `python -m evals.control`."""

from __future__ import annotations

from pydantic import Field

from evals.settings import MAX_TOKENS, EvalSettings
from mhc_model.settings import Settings


class ControlSettings(Settings):
    """Configuration of `python -m evals.control`."""

    checkpoint: str = Field(
        description="checkpoint or run directory of a model that was trained with behaviours"
    )
    out: str = Field(
        description="directory of control.json, control.png and samples.jsonl; the same again "
        "resumes"
    )
    data: str = Field(
        "builtin:1",
        description="held-out problems: builtin:LEVEL or builtin:LEVEL,LEVEL (several levels get "
        "figures of their own), JSON lines in GSM8K's format, or a directory with gsm8k/",
    )
    limit: int | None = Field(
        None, ge=1, description="the first N problems; none takes all, 1,000 built-in ones"
    )
    seed: int = Field(0, ge=0, description="of the built-in problems")
    between: int = Field(
        3, ge=0, description="points between the gates of two neighbouring behaviours"
    )
    bos: bool = Field(
        True, description="put the document separator before every prompt, as training does"
    )
    max_tokens: int = Field(MAX_TOKENS, ge=1, description="most tokens of an answer")
    max_batch: int = Field(32, ge=1, description="sequences that run at once")
    device: str = Field("auto", description="cpu, cuda, cuda:0, ...; auto is CUDA if there is one")

    def evaluation(self) -> EvalSettings:
        """The same problems and answers as an evaluation has them."""
        values = self.model_dump(exclude={"between"})
        return EvalSettings(**values, tasks=("gsm8k",))
