"""Statistics of a difference with one value a seed, and of problems that all seeds answered."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evals.statistics import Interval
from mhc_model.errors import DataError

MOST_SIGNS = 20  # seeds whose signs are enumerated: 2^20 at most


class SeedDifference(NamedTuple):
    """The mean of a difference over seeds.

    Attributes:
        value: mean.
        interval: Student's 95 % interval; None for one seed.
        t_p: p-value of Student's test, two-sided; None for one seed.
        sign_p: exact sign test, two-sided; seeds without a difference are left out.
        permutation_p: exact test over all signs of the differences, two-sided.
        by_seed: the differences.
    """

    value: float
    interval: Interval | None
    t_p: float | None
    sign_p: float
    permutation_p: float
    by_seed: tuple[float, ...]

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and not self.interval.low <= 0.0 <= self.interval.high


def seed_difference(values: Sequence[float]) -> SeedDifference:
    """What the differences of the seeds say of their mean.

    Raises:
        DataError: if there are none, or more than 20.
    """
    if not 1 <= len(values) <= MOST_SIGNS:
        raise DataError(f"there are {len(values)} seeds; 1 to {MOST_SIGNS} are possible")
    mean = float(np.mean(values))
    interval, t_p = _student(values)
    return SeedDifference(
        mean, interval, t_p, sign_test(values), permutation_test(values), tuple(values)
    )


def _student(values: Sequence[float]) -> tuple[Interval | None, float | None]:
    if len(values) < 2:
        return None, None
    from scipy import stats  # Ray's RLlib brings it

    n, mean = len(values), float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    if error == 0.0:
        p_value = 1.0 if mean == 0.0 else 0.0
    else:
        p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Interval(mean - half, mean + half), p_value


def sign_test(values: Sequence[float]) -> float:
    """Exact two-sided p-value: under the null hypothesis a difference has either sign alike."""
    above, below = sum(v > 0 for v in values), sum(v < 0 for v in values)
    n = above + below
    tail = sum(math.comb(n, k) for k in range(min(above, below) + 1))
    return min(1.0, 2 * tail / 2**n)


def permutation_test(values: Sequence[float]) -> float:
    """Fisher's exact two-sided p-value over all 2^n signs; with n seeds at least 2 / 2^n."""
    least = abs(sum(values)) * (1.0 - 1e-9)  # sums in another order round otherwise
    signs = itertools.product((-1.0, 1.0), repeat=len(values))
    far = sum(abs(sum(s * v for s, v in zip(row, values, strict=True))) >= least for row in signs)
    return far / 2 ** len(values)


def crossed_bootstrap(differences: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Interval:
    """95 % interval of the mean where seeds and problems are both a sample (Owen 2007, the
    pigeonhole bootstrap): each draw takes seeds with replacement, and problems with replacement,
    the same for all seeds. It is a little too wide, rather than too narrow.

    Args:
        differences: (seeds, problems) of a pair of models that answered the same problems.
        resamples: draws.
        seed: of the draws.

    Raises:
        DataError: if there are fewer than two seeds or problems.
    """
    seeds, problems = differences.shape
    if seeds < 2 or problems < 2:
        raise DataError(f"there are {seeds} seeds and {problems} problems; two of each at least")
    random = np.random.default_rng(seed)
    rows = random.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    columns = random.multinomial(problems, np.full(problems, 1 / problems), resamples)
    means = ((rows @ differences) * columns).sum(1) / (seeds * problems)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(low), float(high))
