"""The GSM8K task: prompts, extraction and scores, with cases worked out by the harness's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.tasks.gsm8k_pure import (
    INVALID,
    STOP_STRINGS,
    Problem,
    document,
    extract,
    gold_answer,
    load_problems,
    prompt,
    score,
)

PROBLEM = Problem("p-0", "How many?", "2 + 3 = <<2+3=5>>5 apples.\n#### 5")


def test_prompt_and_document_are_the_harness_format():
    assert prompt(PROBLEM) == "Question: How many?\nAnswer:"
    assert document(PROBLEM) == "Question: How many?\nAnswer: 2 + 3 = <<2+3=5>>5 apples.\n#### 5"
    shot = Problem("p-1", "First?", "#### 1")
    assert prompt(PROBLEM, (shot, shot)) == (
        "Question: First?\nAnswer: #### 1\n\n"
        "Question: First?\nAnswer: #### 1\n\n"
        "Question: How many?\nAnswer:"
    )
    assert STOP_STRINGS[0] == "Question:"


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" It is 7.\n#### 7", "7", "7"),
        ("#### 5\n#### 7", "5", "7"),  # strict: the first, flexible: the last
        ("#### -3", "-3", "-3"),
        ("#### 1,080", "1,080", "1,080"),
        ("####7", INVALID, "7"),  # the space is part of the format
        ("####  7", INVALID, "7"),
        ("#### $70", INVALID, "$70"),  # strict knows no dollar sign
        ("so $70.50 in total", INVALID, "$70.50"),
        ("the answer is 7.", INVALID, "7."),
        ("12 apples and 3 pears", INVALID, "3"),
        ("no number", INVALID, INVALID),
        ("", INVALID, INVALID),
        ("a...", INVALID, "..."),
        ("#### 7 <<1+2=3>>", "7", "3"),
    ],
)
def test_extraction(text, strict, flexible):
    assert extract(text) == (strict, flexible)


@pytest.mark.parametrize(
    ("text", "answer", "strict", "flexible"),
    [
        ("#### 1080", "#### 1,080", True, True),
        ("#### 1,080.", "#### 1080", True, True),  # comma and trailing period are ignored
        ("it costs $1,080", "#### 1080", False, True),
        ("#### 5.", "#### 5", True, True),
        ("#### 5.0", "#### 5", False, False),  # exact match of text, not of numbers
        ("#### 55", "#### 5", False, False),
        ("#### 6\nno, 5", "#### 5", False, True),
        ("#### 5\nno, 6", "#### 5", True, False),
        ("#### -5", "#### 5", False, False),
        ("", "#### 5", False, False),
    ],
)
def test_score(text, answer, strict, flexible):
    result = score(text, Problem("p", "q", answer))
    assert (result.strict, result.flexible) == (strict, flexible)


@given(st.integers(-(10**9), 10**9), st.text())
def test_final_line_is_always_found_whatever_the_steps(number, steps):
    text = steps.replace("#", "") + f"\n#### {number:,}"
    problem = Problem("p", "q", f"#### {number}")
    assert score(text, problem).strict
    assert gold_answer(problem) == str(number)


def test_every_gsm8k_answer_scores_itself(shared_data):
    for split, count in (("train", 7473), ("test", 1319)):
        problems = load_problems(str(shared_data / "gsm8k"), split)
        assert len(problems) == count == len({p.id for p in problems})
        for problem in problems:
            result = score(f" {problem.answer}", problem)
            assert result.strict
            assert result.flexible
            assert gold_answer(problem).lstrip("-").isdigit()
