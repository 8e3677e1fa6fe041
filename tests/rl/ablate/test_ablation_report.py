"""The tables, files and pictures of an ablation."""

from __future__ import annotations

import json

import pytest
from outcomes import OUTCOMES

from evals.statistics import wilson_interval
from rl.ablate import write_report
from rl.ablate.report import picture_entry


def test_seeds_on_the_same_problems_do_not_count_as_more_problems(findings):
    assert picture_entry(findings, "ppo:global") == {"accuracy": pytest.approx(5.5 / 8)}
    low, high = wilson_interval(2, 8)
    assert picture_entry(findings, "learned") == {"accuracy": 2 / 8, "wilson_95": [low, high]}


def test_the_table_and_the_files(findings):
    path = write_report(findings)
    table = findings.arms_markdown().splitlines()
    assert "68.8 %" in table[4]
    assert "75.0 62.5" in table[4]
    assert "best of 4 for each problem" in table[-1]
    assert table[4] in path.read_text()
    results = json.loads((path.parent / "results.json").read_text())
    assert results["arms"]["ppo:global"]["accuracy"] == pytest.approx(5.5 / 8)
    assert len(results["runs"]) == len(OUTCOMES)


def test_a_report_of_rewards_shows_levels_tests_and_words(findings_of):
    findings = findings_of(data="builtin:1,2", token_cost=0.01)
    path = write_report(findings)
    text = path.read_text()
    assert "Reward: 1 for a right answer, less 0.01 for each generated token." in text
    assert "reward minus learned" in text
    assert (
        "ppo:global spends 4.0 tokens on a problem of level 1 and 20.0 on one of level 2; 100 % "
        "and 0 % of the answers are direct."
    ) in text
    assert "held-out tokens per answer" in text
    results = json.loads((path.parent / "results.json").read_text())
    assert (results["metric"], results["token_cost"]) == ("reward", 0.01)
    assert results["tests"][0]["p"] is not None
    assert {test["metric"] for test in results["further_tests"]} == {
        "accuracy",
        "tokens per answer",
    }
