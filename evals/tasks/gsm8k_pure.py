"""GSM8K as lm-evaluation-harness defines it: prompts, answer extraction, scores.

Everything here is a pure function of its arguments, shared by training, evaluation, RL and serving.
It follows the harness's task `gsm8k`, version 3 (lm_eval/tasks/gsm8k/gsm8k.yaml): zero-shot or
few-shot prompts, a strict and a flexible extraction, exact match after light normalisation. The
built-in problems have the same format, so they are the same task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from evals.problems.problem import Problem
from evals.problems.sources import load_problems

__all__ = [
    "EXTRACTION_VERSION",
    "INVALID",
    "PROMPT_VERSION",
    "STOP_STRINGS",
    "Extracted",
    "Problem",
    "Score",
    "document",
    "extract",
    "gold_answer",
    "load_problems",
    "prompt",
    "score",
]

# Results compare only where these agree; raise them with any change of the text or the rules.
PROMPT_VERSION = "gsm8k-qa-1"
EXTRACTION_VERSION = "gsm8k-harness-3"

# The harness's `until`: a model that goes on would start the next question.
STOP_STRINGS = ("Question:", "</s>", "<|im_end|>")
INVALID = "[invalid]"

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_SHOT_DELIMITER = "\n\n"
# `regexes_to_ignore` of the harness, in its order: removed from the prediction and the reference.
_IGNORED = tuple(re.compile(p) for p in (r",", r"\$", r"(?s).*#### ", r"\.$"))


class Extracted(NamedTuple):
    """Answers found in a completion, as written there; `INVALID` where there is none."""

    strict: str
    flexible: str


class Score(NamedTuple):
    """Whether each extraction equals the problem's answer, and what was extracted."""

    strict: bool
    flexible: bool
    strict_answer: str
    flexible_answer: str


def prompt(problem: Problem, shots: Sequence[Problem] = ()) -> str:
    """What the model continues: the shots as documents, then the question and `Answer:`.

    A completion starts with the space that separates `Answer:` from the answer.
    """
    parts = [document(shot) for shot in shots]
    return _SHOT_DELIMITER.join([*parts, f"Question: {problem.question}\nAnswer:"])


def document(problem: Problem) -> str:
    """The text a model is trained on: the zero-shot prompt and the answer after one space."""
    return f"{prompt(problem)} {problem.answer}"


def extract(text: str) -> Extracted:
    """Finds the answer in a completion.

    Strict: the number after the first `#### `. Flexible: the last thing that looks like a number.
    """
    strict = _STRICT.search(text)
    flexible = _FLEXIBLE.findall(text)
    return Extracted(
        strict.group(1) if strict else INVALID,
        next(group for group in flexible[-1] if group) if flexible else INVALID,
    )


def score(text: str, problem: Problem) -> Score:
    """Compares a completion with the problem's answer: exact match after normalisation."""
    found = extract(text)
    gold = gold_answer(problem)
    return Score(
        _normalise(found.strict) == gold,
        _normalise(found.flexible) == gold,
        found.strict,
        found.flexible,
    )


def gold_answer(problem: Problem) -> str:
    """The final number of the problem's answer, without commas and dollar signs."""
    return _normalise(problem.answer)


def _normalise(answer: str) -> str:
    for pattern in _IGNORED:
        answer = pattern.sub("", answer)
    return answer.lower()
