"""Statistics over seeds, beside scipy's and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from examples.study import crossed_bootstrap, seed_difference
from examples.study.seeds import permutation_test, sign_test
from mhc_model.errors import DataError

VALUES = [0.03, 0.05, -0.01, 0.04, 0.02]


def test_students_interval_and_test_are_scipys():
    found = seed_difference(VALUES)
    reference = stats.ttest_1samp(VALUES, 0.0)
    assert found.value == pytest.approx(np.mean(VALUES))
    assert found.interval == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert found.t_p == pytest.approx(reference.pvalue)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_the_exact_tests_are_scipys(values):
    differences = [float(value) for value in values]
    kept = [value for value in values if value]
    expected = stats.binomtest(sum(v > 0 for v in kept), len(kept)).pvalue if kept else 1.0
    assert sign_test(differences) == pytest.approx(expected)
    if len(values) > 1:
        reference = stats.permutation_test(
            (np.array(differences),),
            lambda x, axis: np.abs(np.sum(x, axis=axis)),
            permutation_type="samples",
            alternative="greater",
            n_resamples=np.inf,
        )
        assert permutation_test(differences) == pytest.approx(reference.pvalue)


def test_five_seeds_that_agree_cannot_show_more_than_a_sixteenth():
    found = seed_difference([0.1, 0.2, 0.3, 0.4, 0.5])
    assert found.sign_p == found.permutation_p == 2 / 32
    assert found.is_shown, "Student's interval is narrower than the exact tests can be"


def test_one_seed_shows_nothing():
    found = seed_difference([0.4])
    assert (found.interval, found.t_p, found.is_shown) == (None, None, False)
    assert found.permutation_p == 1.0
    with pytest.raises(DataError, match="0 seeds"):
        seed_difference([])


def test_an_interval_that_touches_zero_is_not_shown():
    assert not seed_difference([0.1, -0.1, 0.0]).is_shown
    assert seed_difference([-0.1, -0.1, -0.1001]).is_shown


def test_problems_and_seeds_both_widen_the_pooled_interval():
    random = np.random.default_rng(0)
    problems = random.normal(0.0, 1.0, (1, 400)).repeat(4, axis=0)
    by_problem = crossed_bootstrap(problems)
    # The seeds agree on every problem: only problems vary, as in an ordinary bootstrap.
    half = 1.96 * problems[0].std() / 20
    assert by_problem.high - by_problem.low == pytest.approx(2 * half, rel=0.05)
    seeds = np.array([[-0.5], [0.5], [-0.4], [0.4]]).repeat(400, axis=1)
    by_seed = crossed_bootstrap(seeds)
    assert by_seed.high - by_seed.low == pytest.approx(2 * 1.96 * seeds[:, 0].std() / 2, rel=0.1)
    both = crossed_bootstrap(problems + seeds)
    assert both.high - both.low > max(by_seed.high - by_seed.low, by_problem.high - by_problem.low)
    with pytest.raises(DataError, match="1 seeds and 400 problems"):
        crossed_bootstrap(problems[:1])
