"""What RL found, where a reward is no yes or no, or prompt and answer have gates of their own."""

from __future__ import annotations

import numpy as np
import pytest

from evals.report.document import Document
from evals.report.pictures import gate_against_accuracy
from evals.report.runs import Runs, Tuning
from evals.report.sections import tuning_section

RANDOM = np.random.default_rng(0)


@pytest.fixture
def section(tmp_path):
    """`section(rollouts, rows)`: the document with the section of one run."""

    def build(rollouts: list[dict], rows: list[dict]) -> Document:
        document = Document("t", tmp_path / "pictures")
        tuning_section(document, Runs(tunings=[Tuning(tmp_path / "rl", {}, rows, rollouts, {})]))
        return document

    return build


def test_where_tokens_cost_accuracy_is_still_shown_as_a_share(section):
    rollouts = [
        {"gates": [gate] * 4, "reward": right - 0.4, "right": right}
        for gate, right in zip(RANDOM.random(50), RANDOM.integers(0, 2, 50).tolist(), strict=True)
    ]
    rows = [
        {"reward": 0.1, "accuracy": 0.5, "tokens": 40.0},
        {"reward": 0.3, "accuracy": 0.45, "tokens": 12.0},
    ]
    document = section(rollouts, rows)
    (picture,) = document.pictures
    assert "Wilson" in picture.caption
    text = document.to_markdown()
    assert "mean reward 0.100 in the first and 0.300 in the last" in text
    assert "accuracy 0.500 and 0.450, tokens per answer 40.0 and 12.0" in text


def test_without_answers_the_reward_is_shown(section):
    rollouts = [{"gates": [gate] * 4, "reward": -gate, "right": None} for gate in RANDOM.random(50)]
    (picture,) = section(rollouts, [{"reward": -0.5}]).pictures
    assert picture.title == "Each gate against reward"
    assert "Wilson" not in picture.caption


def test_two_gates_are_shown_as_two(section):
    rollouts = [
        {"gates": [a] * 4, "answer_gates": [b] * 4, "reward": 1.0, "right": 1.0}
        for a, b in RANDOM.random((50, 2))
    ]
    rollouts[3] = {"gates": [0.5] * 4, "answer_gates": None, "reward": 0.0, "right": 0.0}
    (picture,) = section(rollouts, [{"reward": 0.5}]).pictures
    assert [axes.get_title() for axes in picture.figure.axes[:2]] == ["prompt", "answer"]


def test_means_have_intervals_of_their_own():
    gates = np.repeat([[0.1], [0.9]], 50, axis=0)
    values = np.where(gates[:, 0] < 0.5, -2.0, -1.0) + RANDOM.normal(0, 0.1, 100)
    picture = gate_against_accuracy(gates, values, ["all"], what="reward")
    assert "0.0 to 0.2 (n = 50)" in picture.text
    low, high = (float(line.split("| ")[-1]) for line in picture.text.splitlines()[1:])
    assert low == pytest.approx(-2.0, abs=0.1)
    assert high == pytest.approx(-1.0, abs=0.1)
    first, second = picture.text.splitlines()[1:]
    assert first.count("#") < second.count("#"), "bars begin at the lowest value"
