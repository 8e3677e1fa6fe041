"""Differences between variants: within each seed, then over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.statistics import Interval, holm
from examples.study.config import StudyConfig
from examples.study.plan import TIME, TOKENS
from examples.study.results import ACCURACY, BITS, METRICS, Scores
from examples.study.seeds import SeedDifference, crossed_bootstrap, seed_difference
from mhc_model.errors import DataError

All = Mapping[str, Mapping[str, Mapping[int, Scores]]]
TESTED = (ACCURACY, BITS)  # of METRICS; the others are shown
BUDGETS = {TOKENS: "at the same tokens", TIME: "at the same time"}


@dataclass(frozen=True)
class Comparison:
    """A variant minus another one.

    Attributes:
        budget: tokens or time.
        metric: what is compared.
        variant, other: names.
        difference: over the seeds that both have.
        seeds: these.
        pooled: interval over seeds and problems, for the accuracy.
        holm_p: Student's p-value, corrected for all tests of the metric in the study.
    """

    budget: str
    metric: str
    variant: str
    other: str
    difference: SeedDifference
    seeds: tuple[int, ...]
    pooled: Interval | None = None
    holm_p: float | None = None

    def as_json(self) -> dict[str, Any]:
        own = self.difference
        return {
            "budget": self.budget,
            "metric": self.metric,
            "variant": self.variant,
            "minus": self.other,
            "mean": own.value,
            "student_95": None if own.interval is None else list(own.interval),
            "t_p": own.t_p,
            "t_p_holm": self.holm_p,
            "sign_p": own.sign_p,
            "permutation_p": own.permutation_p,
            "seeds_and_problems_95": None if self.pooled is None else list(self.pooled),
            "by_seed": dict(zip(map(str, self.seeds), own.by_seed, strict=True)),
        }

    def words(self) -> str:
        """What is shown, in a sentence."""
        own, what = self.difference, f"{self.metric} {BUDGETS[self.budget]}"
        pair = f"{self.variant} minus {self.other}, {what}"
        if own.interval is None:
            return (
                f"{pair}: {number(own.value, self.metric, True)} on one seed, which shows nothing."
            )
        values = f"{number(own.value, self.metric, True)} {interval(own.interval, self.metric)}"
        if not own.is_shown:
            return f"{pair}: {values}. **Not shown**: the interval includes 0."
        way = "higher" if own.value > 0 else "lower"
        said = f"{pair}: {values}. {self.variant} is **{way}**"
        if self.holm_p is not None and self.holm_p > 0.05:
            said += (
                f"; but of all tests of this kind together one as clear is no surprise "
                f"(p {p_words(self.holm_p)} after Holm)"
            )
        return said + "."


def compare_all(config: StudyConfig, scores: All) -> list[Comparison]:
    """Every variant minus the baseline and minus the reference, in both budgets."""
    found: list[Comparison] = []
    for budget, variants in scores.items():
        for metric in METRICS:
            for variant in config.variants:
                for other in (config.baseline, config.reference):
                    # The reference minus the baseline says what the baseline minus it would.
                    if variant in (other, config.baseline):
                        continue
                    made = _compare(budget, metric, variant, other, variants)
                    if made is not None:
                        found.append(made)
    return [one for metric in METRICS for one in _corrected(found, metric)]


def _compare(
    budget: str,
    metric: str,
    variant: str,
    other: str,
    scores: Mapping[str, Mapping[int, Scores]],
) -> Comparison | None:
    first, second = scores[other], scores[variant]
    seeds = tuple(
        seed
        for seed in first
        if seed in second and metric in first[seed].figures and metric in second[seed].figures
    )
    if not seeds:
        return None
    for seed in seeds:
        if first[seed].ids != second[seed].ids:
            raise DataError(
                f"{variant} and {other} of seed {seed} were not asked the same problems"
            )
    values = [second[seed].figures[metric] - first[seed].figures[metric] for seed in seeds]
    pooled = None
    if metric == ACCURACY and len(seeds) > 1:
        pooled = crossed_bootstrap(
            np.stack([second[seed].solved - first[seed].solved for seed in seeds])
        )
    return Comparison(budget, metric, variant, other, seed_difference(values), seeds, pooled)


def _corrected(found: Sequence[Comparison], metric: str) -> list[Comparison]:
    own = [one for one in found if one.metric == metric]
    if metric not in TESTED or any(one.difference.t_p is None for one in own):
        return own
    p_values = holm([one.difference.t_p or 0.0 for one in own])
    return [
        Comparison(**{**vars(one), "holm_p": p_value})
        for one, p_value in zip(own, p_values, strict=True)
    ]


def number(value: float, metric: str, signed: bool = False) -> str:
    """A figure in its unit: accuracies in percent, differences of them in percentage points."""
    sign = "+" if signed else ""
    if metric == ACCURACY:
        return f"{100 * value:{sign}.1f}" + (" points" if signed else " %")
    return f"{value:{sign}.4f}" if metric == BITS else f"{value:{sign}.2f}"


def interval(bounds: Interval, metric: str) -> str:
    low, high = (100 * bound if metric == ACCURACY else bound for bound in bounds)
    digits = {ACCURACY: 1, BITS: 4}.get(metric, 3)
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def p_words(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
