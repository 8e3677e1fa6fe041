"""The problems of the steerable task."""

from __future__ import annotations

import json

import torch

from evals.problems import load_problems
from rl.steerable import (
    all_problems,
    kind_of,
    right_gates,
    with_digit,
)


def test_problems_differ_and_say_what_is_wanted():
    problems = all_problems(0)
    assert len({problem.question for problem in problems}) == len(problems) == 4800
    assert [p.id for p in all_problems(1)] == [p.id for p in problems]
    assert all_problems(1)[0].question != problems[0].question
    kinds = [kind_of(problem) for problem in problems]
    assert kinds.count("red") == kinds.count("blue") == 2400
    first = with_digit(problems[0], (1, 0, 1))
    assert first.answer == f"{problems[0].answer}5"
    gates = right_gates((1, 0, 1), (0, 1, 3), torch.full((6,), 0.2))
    torch.testing.assert_close(gates, torch.tensor([0.9, 0.1, 0.2, 0.9, 0.2, 0.2]))


def test_the_model_reads_the_problems_as_they_are_asked(tmp_path):
    """Files of a variant are problems of the task that evaluation and RL share."""
    rows = [with_digit(problem, (0, 1, 1)) for problem in all_problems(0)[:3]]
    path = tmp_path / "test.jsonl"
    lines = (json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in rows)
    path.write_text("".join(lines))
    loaded = load_problems(str(tmp_path), "test")
    assert [problem.id for problem in loaded] == ["test-00000", "test-00001", "test-00002"]
    assert [problem.answer for problem in loaded] == [row.answer for row in rows]
