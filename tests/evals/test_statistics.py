"""Intervals and the paired test against scipy."""

from __future__ import annotations

import math
from statistics import variance

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from evals.statistics import mcnemar_exact, standard_error, wilson_interval
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
