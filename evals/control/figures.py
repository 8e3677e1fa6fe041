"""What the answers under one choice of gates are like: pure functions of their samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.problems import STYLES, Style
from evals.statistics import accuracy_entry, mean_entry, wilson_interval
from evals.tasks import Sample

NO_STYLE = "none"  # an answer that does not end in `#### N`


def figures_of(samples: Sequence[Sample], expected: Style | None) -> dict[str, Any]:
    """Shares of the styles, accuracy and tokens of some answers.

    Args:
        samples: at least one; they have `style`, `strict` and `tokens`.
        expected: the style that was asked for; None if none was.

    Returns:
        `n`; `styles`, a share each and `none`; `strict`, an accuracy; `tokens`, a mean; and
        `leakage`, the share of answers in another style than the expected one, None without one.
    """
    styles = [sample["style"] or NO_STYLE for sample in samples]
    n = len(samples)
    return {
        "n": n,
        "styles": {name: _share(styles.count(name), n) for name in (*STYLES, NO_STYLE)},
        "strict": accuracy_entry(sum(sample["strict"] for sample in samples), n),
        "tokens": mean_entry([sample["tokens"] for sample in samples]),
        "leakage": None if expected is None else _share(n - styles.count(expected), n),
    }


def figures_by_level(samples: Sequence[Sample], expected: Style | None) -> dict[str, Any]:
    """`figures_of` of each level where the problems have several; empty where they do not."""
    levels = sorted({sample["level"] for sample in samples if sample["level"] is not None})
    if len(levels) < 2:
        return {}
    return {
        str(level): figures_of([one for one in samples if one["level"] == level], expected)
        for level in levels
    }


def _share(count: int, n: int) -> dict[str, Any]:
    return {"share": count / n, "count": count, "wilson_95": list(wilson_interval(count, n))}
