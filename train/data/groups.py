"""Rows that are trained under the same gates: which these are, and what a model must know of them.

A row says `behaviour: NAME` or `gates: ...`, or neither. What it says is its group; where it says
nothing it has none, which is -1 in arrays, and runs under the learned gates. Gates belong to whole
sequences, so rows of different groups never share one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

from mhc_model.config import BEHAVIOUR_NAME, RESERVED_NAMES, ModelConfig
from mhc_model.errors import DataError, GateError
from mhc_model.gates import expand_gates

Group = str | tuple[float, ...]
"""The name of a behaviour; or gates as a row gives them: 1, L or 2L numbers."""

Words = Collection[str] | None
"""Names of behaviours that are written behind questions instead of becoming groups. None writes
none; where it is empty, every name is one."""

NO_GROUP = -1
KEYS = ("behaviour", "gates")


class RowGroup(NamedTuple):
    """The rows of one group."""

    group: Group
    rows: int  # for training
    first: str  # where the first one is: file and line


def row_group(row: Mapping[str, Any]) -> Group | None:
    """What a row says of its gates.

    Raises:
        DataError: what is wrong with it, to be read after 'FILE line N'.
    """
    behaviour, gates = (row.get(key) for key in KEYS)
    if behaviour is not None and gates is not None:
        raise DataError(f"has behaviour {behaviour!r} and gates {gates!r}; allowed: one of them")
    if gates is not None:
        return _numbers(gates)
    if behaviour is None:
        return None
    known = isinstance(behaviour, str) and re.fullmatch(BEHAVIOUR_NAME, behaviour)
    if not known or behaviour in RESERVED_NAMES:
        raise DataError(
            f"has behaviour {behaviour!r}; a name has 1 to 64 letters, digits, '_' and '-', a "
            f"letter first, and is none of {', '.join(RESERVED_NAMES)}"
        )
    return behaviour


def _numbers(gates: Any) -> tuple[float, ...]:
    values = gates if isinstance(gates, list) else [gates]
    for value in values or [None]:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not 0.0 <= value <= 1.0:
            raise DataError(
                f"has gates {gates!r}; allowed: a number in [0, 1], or a list of 1, L or 2L of "
                f"them for a model of L layers"
            )
    return tuple(float(value) for value in values)


def describe_group(group: Group) -> str:
    """For a person."""
    if isinstance(group, str):
        return f"behaviour {group!r}"
    return f"gates {group[0] if len(group) == 1 else list(group)}"


def split_words(group: Group | None, words: Words) -> tuple[str | None, Group | None]:
    """What a row's question says of its behaviour in words, and the group that is left of it.

    Raises:
        DataError: if the name is none of `words`, to be read after 'FILE line N'.
    """
    if words is None or not isinstance(group, str):
        return None, group
    if words and group not in words:
        raise DataError(f"has {describe_group(group)}; allowed: {', '.join(words)}")
    return group, None


def check_groups(groups: Iterable[RowGroup], model: ModelConfig) -> None:
    """Checks names and lengths against the model that is trained.

    Raises:
        DataError: naming file and line of the first row of a group, and what is allowed.
    """
    for group, _, first in groups:
        what = f"{first} has {describe_group(group)}"
        if model.gateless is not None:
            raise DataError(
                f"{what}, but the model is {model.gateless} and has no gates; allowed: rows "
                f"without, or data.style_words: true (for shards --style-words of train.prepare), "
                f"which writes names of behaviours as words behind the questions"
            )
        if isinstance(group, str) and group not in model.behaviours:
            names = ", ".join(model.behaviours) or "none; declare it in behaviours"
            raise DataError(f"{what}; the names in behaviours are {names}")
        if not isinstance(group, str):
            try:
                expand_gates(group, model.n_layers)
            except GateError as error:
                raise DataError(f"{what}: {error}") from None
