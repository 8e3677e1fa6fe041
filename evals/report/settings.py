"""Configuration of `python -m evals.report`."""

from __future__ import annotations

from pydantic import Field
from tyro.conf import Positional

from mhc_model.settings import Settings

HTML, MARKDOWN, PICTURES = "report.html", "report.md", "pictures"


class ReportSettings(Settings):
    """Configuration of `python -m evals.report`."""

    runs: Positional[tuple[str, ...]] = Field(
        min_length=1, description="run directories of train, rl and evals, or directories of them"
    )
    out: str = Field("report", description="directory of report.html, report.md and pictures/")
    title: str = Field("mHC with gates: report", description="of the report")
    token_cost: float | None = Field(
        None,
        ge=0.0,
        description="C in the reward of an answer, right (strict) - C * generated tokens; none "
        "takes the one of RL among the runs",
    )
    texts: int = Field(32, ge=1, description="evaluated problems that the routing analysis reads")
    device: str = Field("auto", description="of the routing analysis")
    ascii: bool = Field(False, description="print the pictures as characters, too")
