"""One question with its worked answer, whatever file or generator it comes from."""

from __future__ import annotations

from dataclasses import dataclass


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
