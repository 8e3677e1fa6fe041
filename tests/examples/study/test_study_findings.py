"""Differences between variants, between gates, and the report that tells them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from examples.study import write_report
from examples.study.findings import compare_all
from examples.study.gates import policy_gains, read_gates
from examples.study.results import read_all
from mhc_model.errors import DataError

SOLVED = {
    "plain-tokens": ([0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]),
    "mhc-tokens": ([0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]),
    "plain-time": ([1, 1, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]),
}


@pytest.fixture
def directory(tmp_path, pretend):
    for run, seeds in SOLVED.items():
        for seed, solved in enumerate(seeds):
            pretend(tmp_path, seed, run, solved, 2.0 - 0.1 * sum(solved) - 0.01 * seed)
    return tmp_path


@pytest.fixture
def config(study_config):
    return study_config(seeds=[0, 1, 2, 3])


def test_differences_are_taken_within_a_seed(directory, config):
    found = compare_all(config, read_all(config, directory))
    by = {(one.budget, one.metric): one for one in found}
    tokens = by["tokens", "accuracy"]
    assert (tokens.variant, tokens.other) == ("mhc", "plain")
    assert tokens.seeds == (0, 1, 2), "seed 3 has not run"
    assert tokens.difference.by_seed == pytest.approx((0.5, 0.25, 0.5))
    assert by["tokens", "bits per byte"].difference.by_seed == pytest.approx((-0.2, -0.1, -0.2))
    # The reference's own training is that of the same time, too.
    assert by["time", "accuracy"].difference.by_seed == pytest.approx((0.0, 0.25, -0.25))
    assert not by["time", "accuracy"].difference.is_shown
    assert by["time", "tokens per answer"].holm_p is None
    accuracies = [one for one in found if one.metric == "accuracy"]
    assert all(one.holm_p >= one.difference.t_p for one in accuracies)


def test_other_variants_are_compared_with_both(study_config, tmp_path, pretend):
    three = {"plain": {"model.mhc": None}, "mhc": {}, "static": {"model.mhc.dynamic": False}}
    config = study_config(seeds=[0], variants=three)
    for variant in three:
        pretend(tmp_path, 0, f"{variant}-tokens", [1, 0], 2.0)
    found = compare_all(config, read_all(config, tmp_path))
    pairs = {(one.variant, one.other) for one in found}
    assert pairs == {("mhc", "plain"), ("static", "plain"), ("static", "mhc")}


def test_other_problems_are_no_pair(study_config, tmp_path, pretend):
    pretend(tmp_path, 0, "plain-tokens", [1, 0], 2.0)
    pretend(tmp_path, 0, "mhc-tokens", [1, 0, 1], 2.0)
    config = study_config(seeds=[0])
    with pytest.raises(DataError, match="not asked the same problems"):
        compare_all(config, read_all(config, tmp_path))


def test_the_report_says_what_is_not_shown(directory, config):
    said = write_report(config, directory, [0, 1, 2])
    text = (directory / "study.md").read_text()
    assert "3 of 4 seeds are whole (0, 1, 2)" in text
    assert "cannot give a p below 0.25" in text
    assert "plain (`model.mhc: null`); mhc (the training as it is)" in text
    assert "Outside of 20 to 80 %" not in text
    time = [line for line in said.splitlines() if "accuracy at the same time" in line]
    assert time == [
        "- mhc minus plain, accuracy at the same time: +0.0 points [-62.1, +62.1]. **Not shown**: "
        "the interval includes 0."
    ]
    assert "**higher**" in next(s for s in said.splitlines() if "accuracy at the same tokens" in s)
    figures = json.loads((directory / "study.json").read_text())
    assert figures["whole_seeds"] == [0, 1, 2]
    assert figures["models"]["tokens"]["mhc"]["2"]["accuracy"] == 0.5
    first = figures["comparisons"][0]
    assert (first["variant"], first["minus"], first["by_seed"]["1"]) == ("mhc", "plain", 0.25)
    for name in ("curves", "accuracy"):
        assert (directory / "pictures" / f"{name}.png").stat().st_size > 5_000


def test_models_that_solve_hardly_anything_are_named(study_config, tmp_path, pretend):
    pretend(tmp_path, 0, "plain-tokens", [0, 0, 0, 0, 0, 0, 0, 1], 2.0)
    pretend(tmp_path, 0, "mhc-tokens", [0, 0, 1, 0], 2.0)
    config = study_config(seeds=[0], variants={"plain": {}, "mhc": {}})
    (tmp_path / "seed-0" / "mhc-tokens-evals" / "results.json").unlink()
    write_report(config, tmp_path, [])
    text = (tmp_path / "study.md").read_text()
    assert "have little room: plain at the same tokens (12.5 %)." in text


def test_a_report_of_nothing_says_so(study_config, tmp_path):
    assert write_report(study_config(), tmp_path, []) == ""
    text = (tmp_path / "study.md").read_text()
    assert "0 of 2 seeds are whole" in text
    assert "Nothing yet" in text


def test_gains_of_ppo(directory, config, pretend_gates):
    for seed, gain in enumerate((0.1, 0.12, 0.11)):
        constant = np.array([0.0, 0.2, 0.4, 0.2 * seed])
        arms = {"learned": constant - 0.05, "behaviour:direct": constant - 0.2}
        arms |= {"best_constant": constant, "ppo:global": constant + gain}
        values = {arm: own.tolist() for arm, own in arms.items()}
        pretend_gates(directory, seed, "gates-with", values)
    ablations = read_gates(config, directory)
    gains = {gain.other: gain for gain in policy_gains(ablations)}
    assert set(gains) == {"learned", "best_constant", "behaviour:direct"}
    best = gains["best_constant"]
    assert best.difference.by_seed == pytest.approx((0.1, 0.12, 0.11))
    assert best.own_p == (0.5, 0.5, 0.5)
    assert gains["learned"].own_p == (0.001, 0.001, 0.001)
    assert gains["behaviour:direct"].own_p == (None, None, None)
    said = write_report(config, directory, [0, 1, 2])
    assert "PPO is **better**; 0 of 3 seeds have p < 0.01" in said
    text = (directory / "study.md").read_text()
    assert "## Gates of the models with behaviours" in text
    assert "seed 1: 4.0 on level 1, 20.0 on level 2" in text
    assert (directory / "pictures" / "rewards.png").stat().st_size > 5_000
