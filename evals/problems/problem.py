"""One question with its worked answer, whatever file or generator it comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Problem:
    """A question and its worked answer in GSM8K's format.

    Attributes:
        id: stable and unique within its source: results of two runs are paired by it.
        question: plain text.
        answer: the steps, with calculator notes such as `<<3+4=7>>`; the last line is `#### N`.
        level: difficulty of a built-in problem, 1 to 4; None elsewhere.
    """

    id: str
    question: str
    answer: str
    level: int | None = None


def with_words(problem: Problem, words: str | None) -> Problem:
    """The same problem with words in brackets after its question; None changes nothing.

    So a plain model, which has no gates, is told how to answer, in training and in evaluation.
    """
    if words is None:
        return problem
    return replace(problem, question=f"{problem.question} ({words})")
