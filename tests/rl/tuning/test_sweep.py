"""Fixed gates side by side, and the bound over them."""

from __future__ import annotations

import json

import pytest

from evals.problems import load_problems
from mhc_model.gates import expand_gates
from rl.pool import LocalPool
from rl.rollouts import Asker
from rl.tuning.run import load_or_sweep
from rl.tuning.sweep import BEST, Outcomes, outcomes_of, summarize, summary_table, sweep_gates


def plain(right: list[float]) -> Outcomes:
    return Outcomes(right, right, [4.0] * len(right))


def test_the_bound_over_given_gates_leaves_the_policy_out():
    outcomes = {"learned": [1.0, 0.0, 0.0], "g=0": [0.0, 1.0, 0.0], "policy": [1.0] * 3}
    summary = summarize({label: plain(right) for label, right in outcomes.items()})
    assert summary[BEST]["accuracy"] == pytest.approx(2 / 3)
    assert summary["policy"]["accuracy"] == 1.0


def test_accuracy_and_reward_are_figures_of_their_own():
    """A reward below zero is no proportion, and the best reward need not be a right answer's."""
    summary = summarize(
        {
            "direct": Outcomes([0.96, -0.04], [1.0, 0.0], [4.0, 4.0]),
            "worked": Outcomes([0.6, -0.4], [1.0, 0.0], [40.0, 40.0], [-0.1, -0.3]),
        }
    )
    assert summary["worked"]["accuracy"] == 0.5
    assert summary["worked"]["reward"] == pytest.approx(0.1)
    assert summary["worked"]["tokens"] == 40.0
    assert summary["worked"]["loglikelihood"] == pytest.approx(-0.2)
    assert summary[BEST] == {"accuracy": 0.5, "n": 2, "reward": pytest.approx(0.46)}
    table = summary_table(summary).splitlines()
    columns = ["gates", "accuracy [Wilson 95 %]", "tokens per answer", "log-likelihood"]
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == [*columns, "reward", "n"]
    assert "0.460" in table[-1]


def test_names_of_behaviours_are_swept_as_their_gates(named_engine, asker):
    asker = Asker(LocalPool(named_engine), asker.tokenizer, asker.config)
    problems, model = load_problems("builtin:1", "train", 3), named_engine.model.config
    outcomes = sweep_gates(asker, problems, model, (0.5, "worked"))
    assert list(outcomes) == ["learned", "g=0.5", "worked"]
    gates = expand_gates((0.85, 0.5), 2).expand(3, -1)
    assert outcomes["worked"] == outcomes_of(asker, problems, gates)


def test_a_sweep_of_an_earlier_version_is_read(asker, tmp_path):
    """It has rewards only, which were right answers."""
    problems = load_problems("builtin:1", "train", 2)
    saved = {"checkpoint": "one", "outcomes": {"learned": [1.0, 0.0], "g=0": [0.0, 0.0]}}
    (tmp_path / "sweep.json").write_text(json.dumps(saved))
    model = asker.pool.engine.model.config
    outcomes = load_or_sweep(tmp_path, asker.config, asker, problems, model, "one")
    assert outcomes["learned"] == Outcomes([1.0, 0.0], [1.0, 0.0])
    assert summarize(outcomes)[BEST]["accuracy"] == 0.5
    load_or_sweep(tmp_path, asker.config, asker, problems, model, "two")
    again = json.loads((tmp_path / "sweep.json").read_text())
    assert again["checkpoint"] == "two", "other weights are measured anew"
    read = {label: Outcomes.read(own) for label, own in again["outcomes"].items()}
    assert list(read) == ["learned", "g=0", "g=0.5", "g=1"]
    assert read == load_or_sweep(tmp_path, asker.config, asker, problems, model, "two")
