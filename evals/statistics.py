"""Intervals and tests: how sure a share of correct answers is, and a difference of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from mhc_model.errors import DataError

_RESAMPLES_AT_ONCE = 500  # bounds the memory where every problem is of its own kind


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


class Difference(NamedTuple):
    """How much higher the second of two means is.

    Attributes:
        value: second minus first.
        interval: of its resampled values.
    """

    value: float
    interval: Interval


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


def accuracy_entry(correct: int, n: int) -> dict[str, Any]:
    """A share of right answers and how sure it is, as results.json has it.

    Raises:
        DataError: if an argument is outside its range.
    """
    return {
        "accuracy": correct / n,
        "correct": correct,
        "stderr": standard_error(correct, n),
        "wilson_95": list(wilson_interval(correct, n)),
    }


def mean_entry(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """A mean and its bootstrap interval, as result files have it; a single value has no interval.

    Raises:
        DataError: if there is no value.
    """
    if len(values) == 0:
        raise DataError("there are no values to take the mean of")
    if len(values) == 1:
        return {"mean": float(values[0]), "bootstrap_95": None}
    found = paired_bootstrap([0.0] * len(values), values, None, 0.95, resamples, seed)
    return {"mean": found.value, "bootstrap_95": list(found.interval)}


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
    only_first = sum(bool(a and not b) for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b and not a) for a, b in zip(first, second, strict=True))
    n = only_first + only_second
    # Twice the smaller tail of Binomial(n, 1/2), in whole numbers until the last division.
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    weights: Sequence[float] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Interval of the difference of two means on the same problems (Efron's percentile bootstrap).

    Problems are drawn with replacement, both results of a problem together. The same arguments
    give the same interval.

    Args:
        first: one number a problem (for an accuracy 0 or 1), at least two.
        second: the same of the other run, in the same order of problems.
        weights: positive sizes of the problems, where the means are weighted (bytes of a text, for
            values of bits per byte); None weighs all alike.
        confidence: in (0, 1).
        resamples: at least 100.
        seed: of the draws.

    Returns:
        Second minus first.

    Raises:
        DataError: if the lengths differ or an argument is outside its range.
    """
    import numpy as np  # not above: commands that show their help come by here

    n = len(first)
    sizes = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
    if not len(second) == len(sizes) == n or n < 2:
        raise DataError(f"paired results have {n} and {len(second)} problems; two at least")
    if resamples < 100 or not 0.0 < confidence < 1.0 or (n and sizes.min() <= 0.0):
        raise DataError(
            f"resamples is {resamples} (at least 100), confidence {confidence} (between 0 and 1), "
            f"the smallest weight {sizes.min()} (above 0)"
        )
    gained = (np.asarray(second, dtype=float) - np.asarray(first, dtype=float)) * sizes
    # Problems that are alike are drawn together: a draw of n is one multinomial of few numbers.
    kinds, counts = np.unique(np.stack([gained, sizes]), axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn = random.multinomial(n, counts / n, size)  # (size, kinds)
        means.append((drawn @ kinds[0]) / (drawn @ kinds[1]))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100.0 - tail])
    return Difference(float(gained.sum() / sizes.sum()), Interval(float(low), float(high)))


def paired_permutation(
    first: Sequence[float], second: Sequence[float], resamples: int = 20_000, seed: int = 0
) -> float:
    """Fisher's test of paired means, by random signs: two-sided p-value.

    Under the null hypothesis the difference on a problem is as likely with the other sign. The
    p-value is the share of draws whose mean is at least as far from zero, the data themselves
    among them, so it is at least 1 / (resamples + 1). The same arguments give the same p-value.

    Args:
        first: one number a problem.
        second: the same of the other run, in the same order of problems.
        resamples: at least 100.
        seed: of the draws.

    Raises:
        DataError: if the lengths differ or there are fewer than 100 resamples.
    """
    if len(first) != len(second) or resamples < 100:
        raise DataError(
            f"paired results have {len(first)} and {len(second)} problems, to be drawn {resamples} "
            f"times; lengths must be equal, draws at least 100"
        )
    import numpy as np

    gained = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    # Problems that differ alike are drawn together: how many of them keep the sign is binomial.
    sizes, counts = np.unique(np.abs(gained[gained != 0.0]), return_counts=True)
    least = abs(gained.sum()) * (1.0 - 1e-9)  # sums in another order round otherwise
    random = np.random.default_rng(seed)
    found = 1
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, resamples - start)
        kept = random.binomial(counts, 0.5, (size, len(counts)))
        found += int((np.abs((2 * kept - counts) @ sizes) >= least).sum())
    return found / (resamples + 1)


def minimal_detectable_effect(
    n: int, discordant: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Smallest difference of two accuracies that McNemar's test finds with this probability.

    Solves n = (z_(1 - alpha/2) sqrt(d) + z_power sqrt(d - e^2))^2 / e^2 for the difference e, d
    being the share of discordant problems (Connor 1987, Biometrics 43, 207-211; approximate, good
    from about 20 discordant problems on). The exact test is a little more cautious: with a hundred
    discordant problems it finds a difference meant for 0.80 with probability 0.775.

    Args:
        n: problems.
        discordant: share of problems that only one of the runs solves, 0 to 1.
        alpha: two-sided level, in (0, 1).
        power: in (0, 1), above alpha.

    Returns:
        The difference, at most `discordant`; that itself if even the largest possible difference
        would not be found so surely, and 0 where no problem is discordant.

    Raises:
        DataError: if an argument is outside its range.
    """
    if n < 1 or not 0.0 <= discordant <= 1.0 or not 0.0 < alpha < power < 1.0:
        raise DataError(
            f"n is {n} (at least 1), the discordant share {discordant} (0 to 1), alpha {alpha} and "
            f"power {power} (0 < alpha < power < 1)"
        )
    normal = NormalDist()
    level, sure = normal.inv_cdf(1.0 - alpha / 2.0), normal.inv_cdf(power)

    def found(effect: float) -> bool:
        need = level * math.sqrt(discordant) + sure * math.sqrt(discordant - effect * effect)
        return math.sqrt(n) * effect >= need

    low, high = 0.0, discordant
    if not found(high):
        return high
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that hold for all tests together.

    Args:
        p_values: each in [0, 1].

    Raises:
        DataError: if one is outside.
    """
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise DataError(f"p-values are {list(p_values)}; each must be in [0, 1]")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _check_counts(successes: int, n: int) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"{successes} of {n}: n must be at least 1 and successes 0 to n")
