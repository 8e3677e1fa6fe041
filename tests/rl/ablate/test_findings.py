"""An ablation's tests and figures: pairs by seed, means over seeds, bound."""

from __future__ import annotations

import pytest
from outcomes import OUTCOMES

from evals.statistics import holm, mcnemar_exact


def test_pairs_have_the_same_seed_and_all_p_values_are_corrected_together(findings):
    pairs = [(test.first, test.second) for test in findings.tests]
    assert pairs == [
        ("learned", "ppo:global seed 0"),
        ("learned", "ppo:global seed 1"),
        ("learned", "best_constant seed 0"),
        ("learned", "best_constant seed 1"),
        ("best_constant seed 0", "ppo:global seed 0"),
        ("best_constant seed 1", "ppo:global seed 1"),
    ], "given and random gates are shown, not tested"
    expected = [
        mcnemar_exact(OUTCOMES[name_of(first)], OUTCOMES[name_of(second)])
        for first, second in pairs
    ]
    assert [test.mcnemar for test in findings.tests] == expected
    corrected = holm([test.p_value for test in expected])
    assert [test.holm_p for test in findings.tests] == corrected
    assert findings.tests[5].difference.value == pytest.approx(1 / 8)


def name_of(label: str) -> tuple[str, int | None]:
    name, _, seed = label.partition(" seed ")
    return name, int(seed) if seed else None


def test_an_arm_is_the_mean_of_its_seeds(findings):
    entry = findings.summary("ppo:global")
    assert entry["by_seed"] == [6 / 8, 5 / 8]
    assert entry["accuracy"] == pytest.approx(5.5 / 8)
    assert entry["difference"] == pytest.approx(3.5 / 8)
    low, high = entry["difference_95"]
    assert 0 < low < 3.5 / 8 < high
    assert entry["rollouts"] == findings.study.config.budget - 1
    assert findings.summary("learned")["rollouts"] == 0


def test_the_bound_is_what_given_and_random_gates_solve_together(findings):
    bound = findings.bound()
    assert bound["vectors"] == 4
    assert bound["correct"] == 5, "what learning arms found does not count"
