"""Answer styles: made by rule, recognised by rule, scored by the same extraction."""

from __future__ import annotations

import gzip
import json

import pytest

from evals.problems import (
    STYLES,
    Problem,
    expected_style,
    load_problems,
    restyle,
    style_of,
    with_words,
)
from evals.tasks import prompt, score
from mhc_model.config import Behaviour
from mhc_model.errors import DataError

CLIPS = Problem(
    "clips",
    "How many clips?",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
)


@pytest.mark.parametrize(
    ("style", "answer"),
    [("direct", "#### 72"), ("brief", "48/2=24\n48+24=72\n#### 72"), ("worked", CLIPS.answer)],
)
def test_the_three_styles(style, answer):
    assert restyle(CLIPS, style) == Problem("clips", CLIPS.question, answer)


def test_every_built_in_problem_has_every_style():
    for problem in load_problems("builtin:1,2,3,4", "train", 400):
        for style in STYLES:
            styled = restyle(problem, style)
            assert style_of(" " + styled.answer) == style
            assert score(" " + styled.answer, problem).strict
            assert styled.question == problem.question


def test_gsm8k_has_every_style_but_for_a_few_answers_without_calculations(shared_data):
    path = shared_data / "gsm8k" / "train.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    brief = worked = 0
    for number, row in enumerate(rows):
        problem = Problem(str(number), row["question"], row["answer"])
        direct = restyle(problem, "direct")
        assert style_of(direct.answer) == "direct"
        # A few of its answers are calculations without a word.
        worked += style_of(problem.answer) == "worked"
        assert score(direct.answer, problem).strict
        try:
            found = restyle(problem, "brief")
        except DataError:
            continue
        assert style_of(found.answer) == "brief"
        assert score(found.answer, problem).strict
        brief += 1
    assert brief > 0.97 * len(rows)
    assert worked > 0.97 * len(rows)


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("#### 12", "direct"),
        (" #### $1,200\n", "direct"),
        ("3+4=7\n#### 7", "brief"),
        ("3 + 4 = <<3+4=7>>7\n#### 7", "brief"),
        ("Tom has 3 + 4 = <<3+4=7>>7 apples.\n#### 7", "worked"),
        ("3+4=7\nTom has 7.\n#### 7", "worked"),
        ("Tom has 7 apples.", None),
        ("#### ", None),
        ("#### 7 apples", None),
        ("", None),
    ],
)
def test_the_style_of_a_text(text, style):
    assert style_of(text) == style


def test_what_has_no_style_is_refused():
    with pytest.raises(DataError, match="'loud'; allowed: direct, brief, worked"):
        restyle(CLIPS, "loud")
    with pytest.raises(DataError, match="no-end does not end in '#### N'"):
        restyle(Problem("no-end", "q", "It is 3."), "direct")
    with pytest.raises(DataError, match="plain has no calculation"):
        restyle(Problem("plain", "q", "It is three.\n#### 3"), "brief")


@pytest.mark.parametrize(
    ("name", "style", "expected"),
    [
        ("direct", None, "direct"),
        ("worked", None, "worked"),
        ("short", "brief", "brief"),
        ("direct", "worked", "worked"),  # what is said wins over the name
        ("kind", None, None),
    ],
)
def test_what_a_behaviour_asks_for(name, style, expected):
    assert expected_style(name, Behaviour(gates=(0.0, 0.3), style=style)) == expected


def test_words_stand_after_the_question():
    assert prompt(with_words(CLIPS, "direct")) == "Question: How many clips? (direct)\nAnswer:"
    assert with_words(CLIPS, "direct").answer == CLIPS.answer
    assert with_words(CLIPS, None) is CLIPS
