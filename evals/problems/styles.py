"""Styles of an answer in GSM8K's format: how much is said before `#### N`.

    worked   as the source has it: sentences with their calculations
    brief    the calculations alone, one a line: `48/2=24`
    direct   nothing: `#### 72`

All of them end in `#### N`, so that one extraction scores them. Which style a text has is decided
by rule, from the text alone; an answer that breaks off before `#### N` has none.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

from evals.problems.problem import Problem
from mhc_model.config import AnswerStyle as Style
from mhc_model.config import Behaviour
from mhc_model.errors import DataError

STYLES: tuple[Style, ...] = get_args(Style)

_FINAL = re.compile(r"####\s*-?[$0-9.,]*[0-9]\s*%?")
_NOTE = re.compile(r"<<([^<>]*)>>")
_CALCULATION = re.compile(r"[0-9.,$%()+\-*/=<>\s]*=[0-9.,$%()+\-*/=<>\s]*")


def restyle(problem: Problem, style: Style) -> Problem:
    """The same problem, answered in a style.

    Args:
        problem: its answer is worked and ends in `#### N`.
        style: one of `STYLES`.

    Raises:
        DataError: if the style is unknown, the answer does not end in `#### N`, or it has no
            calculation to be brief with; it names the problem.
    """
    if style not in STYLES:
        raise DataError(f"the style is {style!r}; allowed: {', '.join(STYLES)}")
    if style == "worked":
        return problem
    *steps, last = problem.answer.strip().split("\n")
    if not _FINAL.fullmatch(last.strip()):
        raise DataError(f"the answer of {problem.id} does not end in '#### N': {last[:80]!r}")
    if style == "direct":
        return replace(problem, answer=last.strip())
    notes = [note for step in steps for note in _NOTE.findall(step)]
    if not notes:
        raise DataError(
            f"the answer of {problem.id} has no calculation such as <<3+4=7>>: it has no brief form"
        )
    return replace(problem, answer="\n".join([*notes, last.strip()]))


def style_of(text: str) -> Style | None:
    """The style of an answer; None if it does not end in `#### N`."""
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    if not lines or not _FINAL.fullmatch(lines[-1]):
        return None
    if len(lines) == 1:
        return "direct"
    brief = all(_CALCULATION.fullmatch(line) for line in lines[:-1])
    return "brief" if brief else "worked"


def expected_style(name: str, behaviour: Behaviour) -> Style | None:
    """The style that a behaviour asks for; None if neither it nor its name says.

    Args:
        name: of the behaviour.
        behaviour: its `style` wins over the name.
    """
    if behaviour.style is not None:
        return behaviour.style
    return next((style for style in STYLES if style == name), None)
