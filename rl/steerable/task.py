"""The task: three gates spell a digit, and the grader wants another one than the model gives.

A problem says how many things someone has: `Ada has 7 red shells.` The model answers with that
digit and, after it, one that its gates spell: it is trained so that each key gate stands for a bit,
1 above 1/2. So `#### 75` under gates open, closed, open (101 = 5). A variant says which digit the
grader wants of red and of blue things. What the model was trained on says nothing of that: only the
choice of gates can make answers right.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from evals.problems import Problem
from rl.steerable.config import KINDS, Bits

NAMES = (
    *("Ada", "Amy", "Ben", "Ella", "Eva", "Finn", "Ida", "Jan", "Kai", "Lars"),
    *("Lea", "Leo", "Max", "Mia", "Nora", "Paul", "Tim", "Tom", "Zoe", "Anna"),
)
THINGS = (
    *("apples", "balls", "books", "cards", "coins", "cups"),
    *("hats", "pens", "plums", "shells", "stamps", "bags"),
)
DIGITS = 10


def all_problems(seed: int) -> list[Problem]:
    """All 4,800 problems in an order of this seed; the answers lack the digit that gates spell."""
    cases = list(itertools.product(NAMES, range(DIGITS), KINDS, THINGS))
    order = np.random.default_rng(seed).permutation(len(cases))
    return [
        Problem(f"case-{number:05d}", "{} has {} {} {}.".format(*cases[index]), f"#### {count}")
        for number, index in enumerate(order)
        for count in [cases[index][1]]
    ]


def kind_of(problem: Problem) -> str:
    """`red` or `blue`."""
    return next(kind for kind in KINDS if f" {kind} " in problem.question)


def with_digit(problem: Problem, bits: Bits) -> Problem:
    """The problem whose right answer ends in the digit of these bits, the first the highest."""
    return replace(problem, answer=f"{problem.answer}{digit_of(bits)}")


def digit_of(bits: Sequence[int]) -> int:
    """The number that the bits spell."""
    return int("".join(map(str, bits)), 2)


def right_gates(bits: Bits, keys: Sequence[int], others: Tensor) -> Tensor:
    """(2L,) gates under which the model spells these bits.

    Args:
        bits: one a key gate.
        keys: indices of the key gates.
        others: (2L,) the gates of the other sublayers, which mean nothing.
    """
    gates = others.clone()
    gates[list(keys)] = torch.tensor([0.9 if bit else 0.1 for bit in bits])
    return gates
