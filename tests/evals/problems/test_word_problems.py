"""The built-in problems: right, different, disjoint, and the same everywhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import pytest

from evals.problems import LEVELS, SPLITS, generate
from evals.problems.stories import NAMES, STORIES, THINGS
from evals.tasks import gold_answer, score
from mhc_model.errors import DataError

NOTE = re.compile(r"([0-9+\-*/ ]+) = \$?<<([0-9+\-*/]+)=(\d+)>>(\d+)")


def compute(expression: str) -> float:
    """Independent of the generator: Python's own grammar and precedence, whole numbers only."""
    tree = ast.parse(expression, mode="eval")
    allowed = (ast.Expression, ast.BinOp, ast.Constant, ast.operator)
    assert all(isinstance(node, allowed) for node in ast.walk(tree))
    return eval(compile(tree, "note", "eval"))


def words(question: str) -> list[str]:
    return re.findall(r"\d+", question)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_note_and_final_number_is_right(level, split):
    for problem in generate(level, split, 3000):
        *lines, last = problem.answer.split("\n")
        known = {int(number) for number in re.findall(r"\d+", problem.question)}
        for line in lines:
            (note,) = NOTE.findall(line)
            written, inner, value, shown = note
            assert written.replace(" ", "") == inner
            assert compute(inner) == int(value) == int(shown), problem
            assert int(value) >= 0
            # Steps use only what the question says or an earlier step found.
            assert {int(number) for number in re.findall(r"\d+", inner)} <= known, problem
            known.add(int(value))
        assert last == f"#### {value}"
        assert gold_answer(problem) == value
        assert score(problem.answer, problem)[:2] == (True, True)
        assert problem.level == level
        assert "{" not in problem.question + problem.answer


@pytest.mark.parametrize("level", LEVELS)
def test_splits_are_disjoint_and_questions_do_not_repeat(level):
    by_split = {
        split: [p for seed in (0, 1) for p in generate(level, split, 3000, seed)]
        for split in SPLITS
    }
    questions = {split: {p.question for p in by_split[split]} for split in SPLITS}
    assert not questions["train"] & questions["test"]
    for split in SPLITS:
        first = by_split[split][:3000]
        assert len({p.question for p in first}) == 3000
        assert len({p.id for p in by_split[split]}) == 6000


@pytest.mark.parametrize("level", LEVELS)
def test_no_test_problem_is_a_training_problem_with_other_names(level):
    surface = re.compile(rf"\b({'|'.join(NAMES + THINGS)})\b")
    train, test = (
        {surface.sub("_", p.question) for p in generate(level, split, 5000)} for split in SPLITS
    )
    assert not train & test


@pytest.mark.parametrize("split", SPLITS)
def test_ten_thousand_different_problems_of_level_1(split):
    problems = generate(1, split, 10_000)
    assert len({p.question for p in problems}) == 10_000
    assert problems[:100] == generate(1, split, 100)


def test_level_1_mixes_stories_and_sizes():
    problems = generate(1, "test", 2000)
    sizes = [max(map(int, words(p.question))) for p in problems]
    assert 0.3 < sum(size < 10 for size in sizes) / 2000 < 0.7
    assert max(sizes) <= 98
    operators = [re.search(r"\d ([-+*/]) \d", p.answer).group(1) for p in problems]
    assert {"+", "-", "*"} == set(operators)
    lengths = [len(f"{p.question} {p.answer}".split()) for p in problems]
    assert 20 < sum(lengths) / 2000 < 35


def test_level_4_takes_three_or_four_steps():
    steps = {problem.answer.count("<<") for problem in generate(4, "train", 500)}
    assert steps == {3, 4}


def test_another_process_makes_the_same_problems():
    """Python's own hash differs between the two: nothing may depend on it."""
    code = "from evals.problems import generate; print(generate(4, 'train', 50, seed=3))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout == f"{generate(4, 'train', 50, seed=3)}\n"


def test_first_problem_is_pinned():
    """Results name problems by id: a change of the generator must be made knowingly."""
    problem = generate(1, "test", 1)[0]
    assert problem.id == "builtin-1-test-000000"
    assert (
        problem.question == "Max has 2 bags with 2 cards in each bag. How many cards does Max have?"
    )


@pytest.mark.parametrize(
    ("level", "split", "count"), [(0, "test", 1), (5, "test", 1), (1, "dev", 1), (1, "test", -1)]
)
def test_bad_arguments(level, split, count):
    with pytest.raises(DataError, match="levels are 1 to 4, splits train and test"):
        generate(level, split, count)


def test_story_names_are_unique():
    names = [story.name for stories in STORIES.values() for story in stories]
    assert len(set(names)) == len(names)
