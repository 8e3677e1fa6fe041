"""The functions of a program that are no verbs: each checks what it is given."""

from __future__ import annotations

from typing import Any

from mhc_model.recursion.search import Passage
from mhc_model.recursion.settings import answered

MAX_STRING = 200_000  # characters of one value


class FunctionError(Exception):
    """A function was given what it does not take; the interpreter says in which line."""


def is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def same_kind(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values) or all(
        isinstance(value, int | float) for value in values
    )


def _comparable(name: str, values: tuple[Any, ...]) -> list[Any]:
    items = values[0] if len(values) == 1 and isinstance(values[0], list) else list(values)
    if not items or not same_kind(items):
        raise FunctionError(f"{name} takes numbers, or texts, at least one of them")
    return items


def least(*values: Any) -> Any:
    return min(_comparable("min", values))


def greatest(*values: Any) -> Any:
    return max(_comparable("max", values))


def sort(values: list[Any], reverse: bool = False) -> list[Any]:
    if not isinstance(values, list):
        raise FunctionError("sorted takes a list")
    return sorted(_comparable("sorted", (values,)) if values else [], reverse=bool(reverse))


def tells(text: str) -> bool:
    if not isinstance(text, str):
        raise FunctionError("answered takes a text")
    return answered(text)


def length(value: Any) -> int:
    if not isinstance(value, str | list):
        raise FunctionError("len takes a text or a list")
    return len(value)


def join(separator: str, texts: list[str]) -> str:
    if not isinstance(separator, str) or not isinstance(texts, list):
        raise FunctionError("join takes a separator and a list of texts")
    if not all(isinstance(text, str) for text in texts):
        raise FunctionError("join takes texts; make them with str")
    if sum(map(len, texts)) + len(separator) * len(texts) > MAX_STRING:
        raise FunctionError(f"join makes a text of more than {MAX_STRING} characters")
    return separator.join(texts)


def as_text(value: Any) -> str:
    if isinstance(value, Passage):
        return value.text
    if not is_scalar(value):
        raise FunctionError("str takes a number, a text or a passage")
    return str(value)
