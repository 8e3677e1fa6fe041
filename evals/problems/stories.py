"""The stories of the built-in problems: texts, steps and how their numbers are drawn.

A story is data. Its question and its sentences name people ({A}, {B}), a thing ({things}) and
numbers ({a}, {b}, ...); each step computes one new number. A step's sentence shows the calculation
where it names the step's own number: with a = 3 and b = 4 the step `Step("x", "a + b", "{A} has
{x} {things}.")` reads `Tom has 3 + 4 = <<3+4=7>>7 apples.`

Texts are short and words few, so that a model of a million parameters can learn them in minutes.
Numbers that count things are at least 2: no story needs a singular.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Max", "Eva", "Leo", "Nora")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "toys")


class Draw(Protocol):
    """Random whole numbers for a story."""

    def integer(self, low: int, high: int) -> int:
        """Uniform in low .. high, both included."""

    def term(self) -> int:
        """An operand of + or -, at least 2, of the size that the level's mix asks for."""


@dataclass(frozen=True)
class Step:
    """One calculation.

    Attributes:
        result: the name of the number that it computes.
        expression: operands (names of numbers) and + - * / in turn, evaluated left to right.
        sentence: names `{result}` once; the calculation is shown there.
        money: the result is in dollars.
    """

    result: str
    expression: str
    sentence: str
    money: bool = False


@dataclass(frozen=True)
class Story:
    """A kind of problem.

    Attributes:
        name: unique; part of what decides the split.
        numbers: draws the numbers that the question names.
        questions: different wordings.
        steps: lead to the answer, which is the last result.
    """

    name: str
    numbers: Callable[[Draw], dict[str, int]]
    questions: tuple[str, ...]
    steps: tuple[Step, ...]


def _two(draw: Draw) -> dict[str, int]:
    return {"a": draw.term(), "b": draw.term()}


def _less(draw: Draw) -> dict[str, int]:
    """What is taken away and what is left are both operands of the level's sizes."""
    b = draw.term()
    return {"a": b + draw.term(), "b": b}


def _groups(draw: Draw) -> dict[str, int]:
    return {"a": draw.integer(2, 5), "b": draw.integer(2, 9)}


def _gain_then_lose(draw: Draw) -> dict[str, int]:
    a, b = draw.term(), draw.term()
    return {"a": a, "b": b, "c": draw.integer(2, a + b - 2)}


def _groups_and_more(draw: Draw) -> dict[str, int]:
    return {"a": draw.integer(2, 9), "b": draw.integer(2, 9), "c": draw.term()}


def _groups_and_fewer(draw: Draw) -> dict[str, int]:
    a, b = draw.integer(2, 9), draw.integer(2, 9)
    return {"a": a, "b": b, "c": draw.integer(2, a * b - 2)}


def _change(draw: Draw) -> dict[str, int]:
    a, b = draw.integer(2, 9), draw.integer(2, 9)
    return {"a": a, "b": b, "c": 10 * (a * b // 10 + draw.integer(1, 3))}


def _joined_then_shared(draw: Draw) -> dict[str, int]:
    c = draw.integer(2, 9)
    total = c * draw.integer(2, 9)
    a = draw.integer(2, total - 2)
    return {"a": a, "b": total - a, "c": c}


def _profit(draw: Draw) -> dict[str, int]:
    a, b, c, d = (draw.integer(2, 9) for _ in range(4))
    return {"a": a, "b": b, "c": c, "d": d, "e": draw.integer(2, a * b + c * d - 1)}


def _wage(draw: Draw) -> dict[str, int]:
    a, b, c = draw.integer(2, 6), draw.integer(2, 5), draw.integer(5, 20)
    d = draw.integer(2, 9)
    return {"a": a, "b": b, "c": c, "d": d, "e": draw.integer(1, min(20, (a * b * c - 1) // d))}


def _boxes_shared(draw: Draw) -> dict[str, int]:
    d = draw.integer(2, 6)
    rest = d * draw.integer(2, 6)
    a, b = draw.integer(2, 9), draw.integer(2, 9)
    # As many more boxes as needed, so that something is given away before the rest is shared.
    while a * b < rest + 2:
        a += 1
    return {"a": a, "b": b, "c": a * b - rest, "d": d}


def _savings(draw: Draw) -> dict[str, int]:
    b, c, d, e = (draw.integer(2, 9) for _ in range(4))
    return {"a": draw.term(), "b": b, "c": c, "d": d, "e": e}


ONE_STEP = (
    Story(
        "receive",
        _two,
        (
            "{A} has {a} {things}. {B} gives {A} {b} more. How many {things} does {A} have now?",
            "{B} gives {A} {b} {things}. {A} had {a} before. How many {things} does {A} have now?",
        ),
        (Step("x", "a + b", "{A} has {x} {things}."),),
    ),
    Story(
        "find",
        _two,
        (
            "{A} had {a} {things} and found {b} more. How many {things} does {A} have in all?",
            "{A} found {a} {things} today and {b} before. How many {things} does {A} have in all?",
        ),
        (Step("x", "a + b", "{A} has {x} {things}."),),
    ),
    Story(
        "together",
        _two,
        (
            "{A} has {a} {things} and {B} has {b}. How many {things} do they have together?",
            "There are {a} {things} in one box and {b} in another. How many {things} are there?",
        ),
        (Step("x", "a + b", "There are {x} {things}."),),
    ),
    Story(
        "more-than",
        _two,
        (
            "{A} has {a} {things}. {B} has {b} more than {A}. How many {things} does {B} have?",
            "{B} has {b} more {things} than {A}. {A} has {a}. How many {things} does {B} have?",
        ),
        (Step("x", "a + b", "{B} has {x} {things}."),),
    ),
    Story(
        "give",
        _less,
        (
            "{A} had {a} {things}. {A} gave {b} of them to {B}. How many {things} are left?",
            "{A} gave {b} {things} to {B}. {A} had {a} before. How many {things} are left?",
        ),
        (Step("x", "a - b", "{A} has {x} {things} left."),),
    ),
    Story(
        "lose",
        _less,
        (
            "{A} had {a} {things} and lost {b} of them. How many {things} are left?",
            "There were {a} {things} in a box. {A} took {b} out. How many {things} are left?",
        ),
        (Step("x", "a - b", "There are {x} {things} left."),),
    ),
    Story(
        "fewer-than",
        _less,
        (
            "{A} has {a} {things}. {B} has {b} fewer than {A}. How many {things} does {B} have?",
            "{B} has {b} fewer {things} than {A}. {A} has {a}. How many {things} does {B} have?",
        ),
        (Step("x", "a - b", "{B} has {x} {things}."),),
    ),
    Story(
        "difference",
        _less,
        (
            "{A} has {a} {things}. {B} has {b}. How many more {things} does {A} have than {B}?",
            "{A} has {a} {things} and {B} has {b}. How many fewer {things} does {B} have?",
        ),
        (Step("x", "a - b", "The difference is {x} {things}."),),
    ),
    Story(
        "need",
        _less,
        (
            "{A} needs {a} {things} and has {b}. How many more {things} does {A} need?",
            "{A} has {b} {things} but wants {a}. How many more {things} does {A} need?",
        ),
        (Step("x", "a - b", "{A} needs {x} more {things}."),),
    ),
    Story(
        "groups",
        _groups,
        (
            "{A} has {a} bags with {b} {things} in each bag. How many {things} does {A} have?",
            "There are {b} {things} in a bag. {A} has {a} bags. How many {things} does {A} have?",
        ),
        (Step("x", "a * b", "{A} has {x} {things}."),),
    ),
)

TWO_STEPS = (
    Story(
        "gain-then-lose",
        _gain_then_lose,
        (
            "{A} has {a} {things}. {A} finds {b} more and gives {c} to {B}. How many {things} does "
            "{A} have now?",
            "{A} had {a} {things} and got {b} more. Then {A} lost {c}. How many {things} are left?",
        ),
        (
            Step("x", "a + b", "{A} had {x} {things}."),
            Step("y", "x - c", "Then {A} has {y} {things}."),
        ),
    ),
    Story(
        "more-and-together",
        _two,
        (
            "{A} has {a} {things}. {B} has {b} more than {A}. How many {things} do they have "
            "together?",
            "{B} has {b} more {things} than {A}, who has {a}. How many {things} do both have?",
        ),
        (
            Step("x", "a + b", "{B} has {x} {things}."),
            Step("y", "a + x", "Together they have {y} {things}."),
        ),
    ),
    Story(
        "groups-and-more",
        _groups_and_more,
        (
            "{A} has {a} bags with {b} {things} in each and {c} more {things}. How many {things} "
            "does {A} have?",
            "{A} buys {a} boxes of {b} {things}. {B} gives {A} {c} more. How many {things} does "
            "{A} have?",
        ),
        (
            Step("x", "a * b", "That makes {x} {things}."),
            Step("y", "x + c", "{A} has {y} {things}."),
        ),
    ),
    Story(
        "groups-and-fewer",
        _groups_and_fewer,
        (
            "{A} has {a} bags with {b} {things} in each. {A} gives {c} {things} to {B}. How many "
            "{things} are left?",
        ),
        (
            Step("x", "a * b", "{A} had {x} {things}."),
            Step("y", "x - c", "{A} has {y} {things} left."),
        ),
    ),
)

TWO_MIXED_STEPS = (
    Story(
        "two-prices",
        _groups_and_more,
        (
            "{A} buys {a} {things} for ${b} each and a box for ${c}. How many dollars does {A} "
            "spend?",
            "A box costs ${c} and {things} cost ${b} each. {A} buys the box and {a} {things}. How "
            "many dollars does {A} spend?",
        ),
        (
            Step("x", "a * b", "The {things} cost {x}.", money=True),
            Step("y", "x + c", "{A} spends {y}.", money=True),
        ),
    ),
    Story(
        "change",
        _change,
        (
            "{A} buys {a} {things} for ${b} each and pays with ${c}. How many dollars does {A} get "
            "back?",
            "{A} pays with ${c} for {a} {things} that cost ${b} each. How many dollars does {A} "
            "get back?",
        ),
        (
            Step("x", "a * b", "The {things} cost {x}.", money=True),
            Step("y", "c - x", "The change is {y}.", money=True),
        ),
    ),
    Story(
        "join-then-share",
        _joined_then_shared,
        (
            "{A} has {a} {things} and buys {b} more. {A} shares them equally among {c} friends. "
            "How many {things} does each friend get?",
        ),
        (
            Step("x", "a + b", "{A} has {x} {things}."),
            Step("y", "x / c", "Each friend gets {y} {things}."),
        ),
    ),
)

MANY_STEPS = (
    Story(
        "profit",
        _profit,
        (
            "{A} sells {a} {things} for ${b} each and {c} bags for ${d} each. {A} had paid ${e} "
            "for all of them. How many dollars does {A} gain?",
        ),
        (
            Step("w", "a * b", "The {things} bring {w}.", money=True),
            Step("x", "c * d", "The bags bring {x}.", money=True),
            Step("y", "w + x", "Together they bring {y}.", money=True),
            Step("z", "y - e", "{A} gains {z}.", money=True),
        ),
    ),
    Story(
        "wage",
        _wage,
        (
            "{A} works {a} hours a day for {b} days and earns ${c} an hour. Then {A} buys {d} "
            "{things} for ${e} each. How many dollars are left?",
        ),
        (
            Step("w", "a * b", "{A} works {w} hours."),
            Step("x", "w * c", "{A} earns {x}.", money=True),
            Step("y", "d * e", "The {things} cost {y}.", money=True),
            Step("z", "x - y", "{A} has {z} left.", money=True),
        ),
    ),
    Story(
        "boxes-shared",
        _boxes_shared,
        (
            "{A} buys {a} boxes of {b} {things}, gives {c} {things} to {B} and shares the rest "
            "equally among {d} friends. How many {things} does each friend get?",
        ),
        (
            Step("x", "a * b", "{A} buys {x} {things}."),
            Step("y", "x - c", "After the gift there are {y} {things}."),
            Step("z", "y / d", "Each friend gets {z} {things}."),
        ),
    ),
    Story(
        "savings",
        _savings,
        (
            "{A} has ${a} and saves ${b} a week for {c} weeks. Then {A} sells {d} {things} for "
            "${e} each. How many dollars does {A} have?",
        ),
        (
            Step("w", "b * c", "{A} saves {w}.", money=True),
            Step("x", "d * e", "The {things} bring {x}.", money=True),
            Step("y", "a + w", "With the savings {A} has {y}.", money=True),
            Step("z", "y + x", "In the end {A} has {z}.", money=True),
        ),
    ),
)

STORIES: dict[int, tuple[Story, ...]] = {
    1: ONE_STEP,
    2: TWO_STEPS,
    3: TWO_MIXED_STEPS,
    4: MANY_STEPS,
}
