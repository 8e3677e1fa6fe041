"""What an iteration's row and line say of what was measured, and of what was not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rl.config import RLConfig
from rl.pool import Usage
from rl.rollouts import Rollout
from rl.tuning.metrics import Lap, iteration_line, metrics_row

GATES = (0.25, 0.25, 0.75, 0.75)
ROLLOUT = Rollout(0, 1, "p", GATES, "#### 1", "stop", 4, 0.96, 0, 1, right=1.0)
LEARNER = {"entropy": -0.1, "explained_variance": 0.5, "learner_idle": 0.2, "dropped_runners": 0}
COUNTERS = {"retried": 0, "lost": 0}


def row_of(rollouts: list[Rollout]) -> dict:
    return metrics_row(1, rollouts, LEARNER, Lap(2.0, Usage({0: 1.0}, {0: 2.0})))


def test_accuracy_and_tokens_stand_beside_the_reward():
    wrong = replace(ROLLOUT, tokens=40, reward=-0.4, right=0.0, others=("#### 2",))
    row = row_of([ROLLOUT, wrong])
    assert row["reward"] == pytest.approx(0.28)
    assert row["accuracy"] == 0.5
    assert row["tokens"] == 12.0, "4 of one answer, 20 of each of two"
    assert row["tokens_per_second"] == 22.0
    assert "loglikelihood" not in row
    assert "answer_gate_mean" not in row
    line = iteration_line(RLConfig(name="t", checkpoint="none"), row | COUNTERS)
    assert "reward 0.280 | accuracy 0.500 | tokens 12.0 | entropy" in line


def test_what_was_not_measured_is_left_out():
    scored = replace(ROLLOUT, tokens=None, right=None, reward=-1.5, loglikelihood=-1.5)
    row = row_of([scored, replace(scored, reward=-0.5, loglikelihood=-0.5)])
    assert row["loglikelihood"] == row["reward"] == -1.0
    assert not {"accuracy", "tokens"} & set(row)
    line = iteration_line(RLConfig(name="t", checkpoint="none"), row | COUNTERS)
    assert "reward -1.000 | loglikelihood -1.000 | entropy" in line


def test_gates_of_answers_are_figures_of_their_own():
    row = row_of([replace(ROLLOUT, answer_gates=(1.0,) * 4), ROLLOUT])
    assert row["gate_mean"] == list(GATES)
    assert row["answer_gate_mean"] == [0.625, 0.625, 0.875, 0.875]
    assert row["answer_gate_std"] == [0.375, 0.375, 0.125, 0.125]
