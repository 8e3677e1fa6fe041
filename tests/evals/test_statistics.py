"""Intervals and paired tests against scipy, statsmodels and simulation."""

from __future__ import annotations

import math
from statistics import variance

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, chi2, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from evals.statistics import (
    holm,
    mcnemar_exact,
    mean_entry,
    minimal_detectable_effect,
    paired_bootstrap,
    paired_permutation,
    standard_error,
    wilson_interval,
)
from mhc_model.errors import DataError

counts = st.integers(1, 1500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(max_examples=50, deadline=None)
@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(count, confidence):
    k, n = count
    low, high = wilson_interval(k, n, confidence)
    expected = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0.0 <= low <= k / n <= high <= 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=300))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    result = mcnemar_exact(first, second)
    n = result.only_first + result.only_second
    assert n == sum(a != b for a, b in pairs)
    expected = binomtest(result.only_first, n, 0.5).pvalue if n else 1.0
    assert result.p_value == pytest.approx(expected, abs=1e-9)
    swapped = mcnemar_exact(second, first)
    assert (swapped.only_first, swapped.p_value) == (result.only_second, result.p_value)


def test_mcnemar_by_hand():
    # 1 against 7: 2 * (1 + 8) / 2**8
    result = mcnemar_exact([True] + [False] * 7 + [True] * 5, [False] + [True] * 12)
    assert result == (1, 7, 18 / 256)


def test_standard_error_is_that_of_the_sample():
    values = [1.0] * 7 + [0.0] * 13
    assert standard_error(7, 20) == pytest.approx(math.sqrt(variance(values) / 20))
    assert standard_error(1, 1) == 0.0


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_counts_outside_the_range(k, n):
    with pytest.raises(DataError, match=f"{k} of {n}"):
        wilson_interval(k, n)
    with pytest.raises(DataError, match=f"{k} of {n}"):
        standard_error(k, n)


def test_other_bad_arguments():
    with pytest.raises(DataError, match=r"confidence is 95"):
        wilson_interval(1, 2, 95)
    with pytest.raises(DataError, match="1 and 2 problems"):
        mcnemar_exact([True], [True, False])


def outcomes(counts):
    """0/1 results of two runs: both, only the first, only the second, neither solved."""
    first = np.repeat([1, 1, 0, 0], counts)
    return first, np.repeat([1, 0, 1, 0], counts)


def test_bootstrap_is_scipys():
    random = np.random.default_rng(3)
    first, second = random.normal(size=40), random.normal(size=40) + 0.3
    found = paired_bootstrap(first, second, resamples=20_000)
    expected = bootstrap(
        (second - first,), np.mean, n_resamples=20_000, method="percentile", rng=random
    ).confidence_interval
    assert found.value == pytest.approx((second - first).mean())
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.012)
    assert found == paired_bootstrap(first, second, resamples=20_000)
    assert found != paired_bootstrap(first, second, resamples=20_000, seed=1)


def test_weights_count_in_both_halves_of_the_mean():
    """The same gain everywhere is the same in every draw, whatever the sizes."""
    sizes = [1.0, 50.0, 3.0, 200.0]
    value, (low, high) = paired_bootstrap([1.0] * 4, [1.5] * 4, sizes)
    assert (value, low, high) == pytest.approx((0.5, 0.5, 0.5))


def test_weighted_bootstrap_is_scipys():
    random = np.random.default_rng(4)
    first, second = random.normal(size=60), random.normal(size=60) + 0.3
    sizes = random.integers(1, 20, 60)

    def ratio(gain, size, axis=-1):
        return (gain * size).sum(axis) / size.sum(axis)

    found = paired_bootstrap(first, second, sizes, resamples=20_000)
    expected = bootstrap(
        (second - first, sizes),
        ratio,
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=random,
    ).confidence_interval
    assert found.value == pytest.approx(ratio(second - first, sizes))
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.012)


def test_a_mean_and_its_interval_are_scipys():
    values = np.random.default_rng(5).gamma(2.0, 10.0, size=50)
    found = mean_entry(values, resamples=20_000)
    expected = bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(6)
    ).confidence_interval
    assert found["mean"] == pytest.approx(values.mean())
    assert found["bootstrap_95"] == pytest.approx([expected.low, expected.high], abs=0.25)
    assert mean_entry([3]) == {"mean": 3.0, "bootstrap_95": None}
    with pytest.raises(DataError, match="no values"):
        mean_entry([])


@pytest.mark.parametrize("shares", [(0.48, 0.08, 0.12, 0.32), (0.25, 0.05, 0.11, 0.59)])
def test_intervals_cover_what_they_promise(shares):
    """2,000 simulated comparisons of 400 problems: 95 % of the intervals hold the truth, ± 1."""
    random = np.random.default_rng(1)
    covered = np.zeros(2)
    for seed in range(2000):
        counts = random.multinomial(400, shares)
        low, high = paired_bootstrap(*outcomes(counts), resamples=1000, seed=seed).interval
        # The truth lies on the grid of possible differences: rounding must not decide.
        covered[0] += low - 1e-9 <= shares[2] - shares[1] <= high + 1e-9
        low, high = wilson_interval(int(counts[0] + counts[1]), 400)
        covered[1] += low <= shares[0] + shares[1] <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("n", "discordant"), [(400, 0.24), (1319, 0.2)])
def test_the_detectable_effect_is_detected_four_times_of_five(n, discordant):
    effect = minimal_detectable_effect(n, discordant)
    random = np.random.default_rng(2)
    shares = ((discordant - effect) / 2, (discordant + effect) / 2)
    counts = random.multinomial(n, [0.3, *shares, 0.7 - discordant], 2000)
    lost, won = counts[:, 1], counts[:, 2]
    found = (won - lost) ** 2 / (won + lost) > chi2.ppf(0.95, 1)
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    exact = [mcnemar_exact(*outcomes(row)).p_value < 0.05 for row in counts[:500]]
    assert 0.7 < np.mean(exact) < 0.82  # it is a little more cautious


def test_detectable_effect_at_the_ends():
    assert minimal_detectable_effect(100, 0.0) == 0.0
    assert minimal_detectable_effect(10, 0.2) == 0.2  # two problems: nothing can be found
    smaller = [minimal_detectable_effect(n, 0.2) for n in (100, 1000, 10_000)]
    assert smaller == sorted(smaller, reverse=True)
    stricter = minimal_detectable_effect(1000, 0.2, alpha=0.01, power=0.9)
    assert stricter > smaller[1]


def test_holm_and_mcnemar_are_those_of_statsmodels():
    random = np.random.default_rng(5)
    for count in (1, 2, 7):
        p_values = random.random(count) ** 3
        expected = multipletests(p_values, method="holm")[1]
        assert holm(p_values) == pytest.approx(expected.tolist(), abs=1e-12)
    assert holm([]) == []
    assert holm([0.04, 0.01, 0.04]) == pytest.approx([0.08, 0.03, 0.08])
    for counts in ((5, 1, 7, 3), (0, 4, 4, 0), (90, 20, 34, 100)):
        expected = mcnemar([counts[:2], counts[2:]], exact=True).pvalue
        assert mcnemar_exact(*outcomes(counts)).p_value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap([1.0], [1.0]), "two at least"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0]), "2 and 1 problems"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0], [1.0, 0.0]), "weight 0.0"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0], resamples=10), "resamples is 10"),
        (lambda: minimal_detectable_effect(0, 0.1), "n is 0"),
        (lambda: minimal_detectable_effect(10, 1.1), "share 1.1"),
        (lambda: minimal_detectable_effect(10, 0.1, power=0.01), "power 0.01"),
        (lambda: holm([0.5, 1.5]), "1.5"),
    ],
)
def test_arguments_of_the_tests(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_permutation_is_scipys():
    """Ten problems have 1,024 signs, all of which scipy tries."""
    random = np.random.default_rng(4)
    first = random.integers(0, 40, 10).astype(float)
    second = first + random.choice([-30.0, -4.0, 0.0, 6.0, 36.0], 10)

    def gain(x, y, axis):
        return np.mean(y - x, axis=axis)

    exact = permutation_test(
        (first, second), gain, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert paired_permutation(first.tolist(), second.tolist()) == pytest.approx(
        exact.pvalue, abs=0.01
    )
    assert paired_permutation(second.tolist(), first.tolist()) == pytest.approx(
        exact.pvalue, abs=0.01
    ), "two-sided"


def test_permutation_at_the_ends():
    assert paired_permutation([1.0, 2.0], [1.0, 2.0]) == 1.0
    many = [0.0] * 100, [1.0] * 100
    assert paired_permutation(*many, resamples=999) == 1 / 1000
    with pytest.raises(DataError, match="2 and 1 problems"):
        paired_permutation([1.0, 2.0], [1.0])


def test_permutation_holds_its_level():
    """Of pairs that do not differ in the mean, one in twenty has a p-value below 0.05."""
    random = np.random.default_rng(5)
    found = []
    for _ in range(400):
        pairs = random.normal(size=(2, 30))
        found.append(paired_permutation(*pairs.tolist(), resamples=400))
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09
