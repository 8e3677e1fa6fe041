"""Intervals and tests for accuracies: how sure a share of correct answers is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from mhc_model.errors import DataError


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class McNemar(NamedTuple):
    """A paired comparison of two runs on the same problems.

    Attributes:
        only_first: problems that only the first run solved.
        only_second: problems that only the second run solved.
        p_value: exact, two-sided.
    """

    only_first: int
    only_second: int
    p_value: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), good for small n and near 0 and 1.

    Args:
        successes: 0 .. n.
        n: at least 1.
        confidence: in (0, 1).

    Raises:
        DataError: if an argument is outside its range.
    """
    _check_counts(successes, n)
    if not 0.0 < confidence < 1.0:
        raise DataError(f"confidence is {confidence}; it must be between 0 and 1")
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4 * n * n))
    scale = 1.0 + z * z / n
    # Rounding must not push a bound over what it is exactly: 0 for no success, 1 for n of n.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return Interval(low, high)


def standard_error(successes: int, n: int) -> float:
    """Standard error of a share, with the sample variance as lm-evaluation-harness has it.

    Raises:
        DataError: if an argument is outside its range.
    """
    _check_counts(successes, n)
    share = successes / n
    return math.sqrt(share * (1.0 - share) / (n - 1)) if n > 1 else 0.0


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test: do two runs differ on the problems that only one of them solved?

    Under the null hypothesis each such problem falls to either run with probability 1/2.

    Args:
        first: whether the first run solved each problem.
        second: the same for the second run, in the same order of problems.

    Raises:
        DataError: if the lengths differ.
    """
    if len(first) != len(second):
        raise DataError(f"paired results have {len(first)} and {len(second)} problems")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n = only_first + only_second
    # Twice the smaller tail of Binomial(n, 1/2), in whole numbers until the last division.
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))


def _check_counts(successes: int, n: int) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"{successes} of {n}: n must be at least 1 and successes 0 to n")
