"""Built-in grade-school word problems: endless, deterministic, in GSM8K's own format.

    level 1   one step: + and -, and equal groups of up to 5 times 9
    level 2   two steps of + - *
    level 3   two steps of + - * /, most with money
    level 4   three or four steps of + - * /, most with money

The training and the test split are disjoint by construction: a sha256 of the story and its numbers
decides the split. So no test problem is a training problem with other names either. Within one
call no question occurs twice, and `generate(..., count=10)` is the start of
`generate(..., count=100)`.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from evals.problems.problem import Problem
from evals.problems.stories import NAMES, STORIES, THINGS, Step, Story
from mhc_model.errors import DataError

T = TypeVar("T")

LEVELS = tuple(sorted(STORIES))
SPLITS = ("train", "test")
TEST_SHARE = 0.2  # of the combinations of story and numbers


class Band(NamedTuple):
    """Operands of one size: uniform in low .. high, drawn with this weight."""

    weight: float
    low: int
    high: int


# Sizes of the operands of + and - per level, drawn for each operand on its own. Small ones are
# learnt first and two-digit ones with carries last, so accuracy rises gradually with training.
# This is the knob of a level's difficulty.
OPERANDS: Mapping[int, tuple[Band, ...]] = {
    1: (Band(0.6, 2, 5), Band(0.25, 2, 9), Band(0.15, 10, 49)),
    2: (Band(0.6, 2, 9), Band(0.4, 10, 49)),
    3: (Band(0.4, 2, 9), Band(0.6, 10, 99)),
    4: (Band(1.0, 10, 99),),
}

_OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,  # stories divide only what divides
}
# Draws in a row that bring nothing new before a level counts as exhausted.
_PATIENCE = 100_000


def generate(level: int, split: str, count: int, seed: int = 0) -> list[Problem]:
    """Makes problems; the same arguments give the same problems on every machine.

    Args:
        level: difficulty, one of `LEVELS`.
        split: "train" or "test"; their problems never meet, whatever the seeds.
        count: number of different questions, at least 0.
        seed: another seed gives another sequence.

    Returns:
        Problems with ids such as `builtin-1-test-000012`; a seed other than 0 is named in the id.

    Raises:
        DataError: for an unknown level or split, a negative count, or more problems than there are.
    """
    if level not in STORIES or split not in SPLITS or count < 0:
        raise DataError(
            f"built-in problems of level {level!r}, split {split!r}, count {count}: levels are "
            f"{LEVELS[0]} to {LEVELS[-1]}, splits {' and '.join(SPLITS)}, the count is at least 0"
        )
    draw = _SeededDraw(f"{level}/{split}/{seed}", OPERANDS[level])
    series = f"builtin-{level}-{split}" + (f"-s{seed}" if seed else "")
    seen: set[str] = set()
    problems: list[Problem] = []
    misses = 0
    while len(problems) < count:
        story = draw.pick(STORIES[level])
        numbers = story.numbers(draw)
        if split_of(story.name, numbers) == split:
            question, answer = _tell(story, numbers, draw)
            if question not in seen:
                seen.add(question)
                problems.append(Problem(f"{series}-{len(problems):06d}", question, answer, level))
                misses = 0
                continue
        misses += 1
        if misses == _PATIENCE:
            raise DataError(
                f"level {level} has no more than about {len(problems)} different {split} problems; "
                f"{count} were asked for"
            )
    return problems


def split_of(story: str, numbers: Mapping[str, int]) -> str:
    """The split to which a story with these numbers belongs, whatever its names and wording."""
    content = story + "".join(f" {name}={value}" for name, value in sorted(numbers.items()))
    digest = hashlib.sha256(content.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64 else "train"


class _SeededDraw:
    """Uniform draws made of `random.random` only: its sequence is the same in every Python."""

    def __init__(self, seed: str, bands: Sequence[Band]) -> None:
        self._random = random.Random(seed).random
        self._bands = bands

    def integer(self, low: int, high: int) -> int:
        return low + int(self._random() * (high - low + 1))

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.integer(0, len(choices) - 1)]

    def term(self) -> int:
        position = self._random() * sum(band.weight for band in self._bands)
        for band in self._bands:
            position -= band.weight
            if position < 0:
                break
        return self.integer(band.low, band.high)


def _tell(story: Story, numbers: Mapping[str, int], draw: _SeededDraw) -> tuple[str, str]:
    """Question and answer with names, things and one of the wordings drawn."""
    first = draw.integer(0, len(NAMES) - 1)
    second = (first + draw.integer(1, len(NAMES) - 1)) % len(NAMES)
    words = {"A": NAMES[first], "B": NAMES[second], "things": draw.pick(THINGS)}
    values = dict(numbers)
    question = draw.pick(story.questions).format(**words, **values)
    lines = []
    for step in story.steps:
        value, calculation = _calculate(step, values)
        lines.append(step.sentence.format(**words, **{**values, step.result: calculation}))
        values[step.result] = value
    return question, "\n".join([*lines, f"#### {value}"])


def _calculate(step: Step, values: Mapping[str, int]) -> tuple[int, str]:
    """The result of a step and how it is written: `3 + 4 = <<3+4=7>>7`."""
    first, *rest = step.expression.split()
    result = values[first]
    written = [str(result)]
    for symbol, name in zip(rest[::2], rest[1::2], strict=True):
        result = _OPERATORS[symbol](result, values[name])
        written += [symbol, str(values[name])]
    dollar = "$" if step.money else ""
    return result, f"{' '.join(written)} = {dollar}<<{''.join(written)}={result}>>{result}"
