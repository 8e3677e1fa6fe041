"""Two runs on the same problems, tested in pairs: accuracies, tokens, rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.statistics import (
    Difference,
    McNemar,
    holm,
    mcnemar_exact,
    minimal_detectable_effect,
    paired_bootstrap,
    paired_permutation,
)

TOKENS, REWARD = "tokens per answer", "reward"


@dataclass(frozen=True)
class Test:
    """Two runs on one metric.

    Attributes:
        task, metric: what was scored.
        first, second: labels of the runs.
        difference: second minus first, with its bootstrap interval.
        mcnemar: the exact test of an accuracy; None for other metrics.
        holm_p: the test's p-value, corrected for all tests of the comparison.
        detectable: smallest difference that McNemar's test finds with probability 0.8 at these
            discordant problems; None where there are none, and for other metrics.
        permutation_p: p-value of a difference of means (tokens, reward); None for accuracies, and
            for bits per byte, which have an interval only.
    """

    task: str
    metric: str
    first: str
    second: str
    difference: Difference
    mcnemar: McNemar | None = None
    holm_p: float | None = None
    detectable: float | None = None
    permutation_p: float | None = None

    @property
    def p_value(self) -> float | None:
        """Before Holm's correction; None where there is an interval only."""
        return self.permutation_p if self.mcnemar is None else self.mcnemar.p_value


LEGEND = (
    "Difference: second minus first, paired bootstrap. Won, lost: problems that only the second, "
    "only the first run solved. p: McNemar, exact, for accuracies; for other means a paired "
    "permutation test. Holm: corrected for all tests of the table. Detectable: the smallest "
    "difference found with probability 0.8 at this number of discordant problems."
)


def tests_rows(tests: Sequence[Test]) -> tuple[list[str], list[list[str]]]:
    """Header and a row a test; differences in percentage points, or in the metric's own unit."""
    header = ["metric", "runs", "difference [95 %]", "won, lost", "p", "p, Holm", "detectable"]
    return header, [_test_row(test) for test in tests]


def accuracy_test(
    task: str,
    metric: str,
    names: tuple[str, str],
    solved: tuple[Sequence[bool], Sequence[bool]],
    resamples: int = 10_000,
    seed: int = 0,
) -> Test:
    """Two runs on the same problems, at least two; Holm's correction is `corrected`'s to make.

    Args:
        task, metric: what was scored.
        names: of the first run and the second.
        solved: whether each run solved each problem, in the same order.
        resamples: draws of the bootstrap interval.
        seed: of the draws.
    """
    first, second = solved
    paired = mcnemar_exact(first, second)
    difference = paired_bootstrap(first, second, None, 0.95, resamples, seed)
    share = (paired.only_first + paired.only_second) / len(first)
    detectable = minimal_detectable_effect(len(first), share) if share else None
    return Test(task, metric, *names, difference, paired, paired.p_value, detectable)


def reward(right: bool, tokens: int, token_cost: float) -> float:
    """What an answer is worth if each generated token costs something."""
    return float(right) - token_cost * tokens


def mean_test(
    task: str,
    metric: str,
    names: tuple[str, str],
    values: tuple[Sequence[float], Sequence[float]],
    resamples: int = 10_000,
    seed: int = 0,
) -> Test:
    """As `accuracy_test`, of values that are no yes or no: tokens, rewards."""
    difference = paired_bootstrap(*values, None, 0.95, resamples, seed)
    p_value = paired_permutation(*values, seed=seed)
    return Test(task, metric, *names, difference, holm_p=p_value, permutation_p=p_value)


def corrected(tests: list[Test]) -> list[Test]:
    """The tests with Holm's p-values, corrected for all of them together."""
    p_values = {i: test.p_value for i, test in enumerate(tests) if test.p_value is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [
        Test(**{**vars(test), "holm_p": adjusted.get(index)}) for index, test in enumerate(tests)
    ]


def _test_row(test: Test) -> list[str]:
    low, high = test.difference.interval
    pair = f"{test.second} - {test.first}"
    if test.mcnemar is None:
        count = digits(test.metric)
        difference = f"{test.difference.value:+.{count}f} [{low:+.{count}f}, {high:+.{count}f}]"
        if test.permutation_p is None:
            return [test.metric, pair, difference, "", "", "", ""]
        p_values = [f"{test.permutation_p:.3g}", f"{test.holm_p:.3g}"]
        return [f"{test.task} {test.metric}", pair, difference, "", *p_values, ""]
    points = [100 * value for value in (test.difference.value, low, high)]
    detectable = "" if test.detectable is None else f"{100 * test.detectable:.1f}"
    return [
        f"{test.task} {test.metric}",
        pair,
        f"{points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}]",
        f"{test.mcnemar.only_second}, {test.mcnemar.only_first}",
        f"{test.mcnemar.p_value:.3g}",
        f"{test.holm_p:.3g}",
        detectable,
    ]


def digits(metric: str) -> int:
    """Decimals of a mean in tables."""
    return 2 if metric == TOKENS else 4
