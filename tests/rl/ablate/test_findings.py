"""An ablation's tests and figures: pairs by seed, means over seeds, bound."""

from __future__ import annotations

import pytest
from outcomes import OUTCOMES, TOKENS, held_out_rows

from evals.statistics import holm, mcnemar_exact, paired_permutation
from rl.ablate import Arm, HeldOut


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


def rewards_of(name: str, seed: int | None, cost: float) -> list[float]:
    pairs = zip(OUTCOMES[name, seed], TOKENS[name], strict=True)
    return [right - cost * tokens for right, tokens in pairs]


def test_where_tokens_cost_the_tests_are_of_the_reward(findings_of):
    findings = findings_of(token_cost=0.01)
    assert findings.metric == "reward"
    first = findings.tests[0]
    assert (first.first, first.second, first.metric) == ("learned", "ppo:global seed 0", "reward")
    learned, ppo = rewards_of("learned", None, 0.01), rewards_of("ppo:global", 0, 0.01)
    assert first.difference.value == pytest.approx(sum(ppo) / 8 - sum(learned) / 8)
    assert first.mcnemar is None
    assert first.p_value == paired_permutation(learned, ppo)
    assert [test.holm_p for test in findings.tests] == holm([t.p_value for t in findings.tests])
    further = [(test.metric, test.second) for test in findings.further_tests]
    assert further[0] == ("accuracy", "ppo:global seed 0")
    assert findings.further_tests[0].mcnemar is not None, "an accuracy stays a proportion"
    assert further[len(findings.tests)] == ("tokens per answer", "ppo:global seed 0")

    entry = findings.summary("ppo:global")
    assert entry["accuracy"] == pytest.approx(5.5 / 8)
    assert entry["tokens"] == 12.0
    assert entry["reward"] == pytest.approx(5.5 / 8 - 0.12)
    assert entry["reward_by_seed"] == pytest.approx([6 / 8 - 0.12, 5 / 8 - 0.12])
    assert entry["reward_difference"] == pytest.approx(3.5 / 8 - 0.02)
    low, high = entry["reward_difference_95"]
    assert low < 3.5 / 8 - 0.02 < high
    assert entry["tokens_difference"] == pytest.approx(2.0)


def test_the_bound_takes_the_best_reward_of_each_problem(findings_of):
    bound = findings_of(token_cost=0.01).bound()
    # Solved under the learned gates at 10 tokens (0, 1), g=0 at 4 (2), random ones at 10 (3, 4);
    # the other three cost least under g=0.
    best = [0.9, 0.9, 0.96, 0.9, 0.9, -0.04, -0.04, -0.04]
    assert bound["reward"] == pytest.approx(sum(best) / 8)
    assert bound["correct"] == 5


def test_figures_by_level_say_how_easy_and_hard_problems_are_answered(findings_of):
    findings = findings_of(data="builtin:1,2", token_cost=0.01)
    assert list(findings.levels) == [1, 2]
    levels = findings.summary("ppo:global")["levels"]
    assert {level: part["tokens"] for level, part in levels.items()} == {"1": 4.0, "2": 20.0}
    assert levels["1"]["styles"] == {"direct": 1.0, "brief": 0.0, "worked": 0.0}
    assert levels["2"]["styles"] == {"direct": 0.0, "brief": 0.0, "worked": 1.0}
    assert levels["1"]["accuracy"] == pytest.approx(6 / 8), "3 and 3 of 4"
    assert levels["2"]["accuracy"] == pytest.approx(5 / 8)
    assert "levels" not in findings_of_one_level(findings_of).summary("ppo:global")


def findings_of_one_level(findings_of):
    return findings_of(name="one")


def test_answers_of_earlier_versions_have_a_reward_that_says_right(findings_of):
    config = findings_of(token_cost=0.01).study.config
    rows = held_out_rows([1, 0], [4, 20])
    for row in rows:
        row["reward"] = row.pop("right")
    result = HeldOut.read(Arm("learned", "learned", "global"), rows, config)
    assert result.solved.tolist() == [True, False]
    assert result.rewards.tolist() == pytest.approx([0.96, -0.2])
