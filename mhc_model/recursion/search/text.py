"""A long text, its lines, and its cut into overlapping passages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from mhc_model.errors import SessionError

Unit = Literal["characters", "lines"]

# A cut moves back to a space if there is one within this share of the passage.
_SNAP = 0.1
_SPACE = re.compile(r"\s")


@dataclass(frozen=True)
class Passage:
    """A part of a text.

    Attributes:
        start: first character, counted from 0.
        end: one past the last character.
        text: the characters themselves.
        score: what `search` gave it, for comparison within one search only; None elsewhere.
    """

    start: int
    end: int
    text: str
    score: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class LongText:
    """A text with its lines; ranges are checked, never clipped in silence."""

    def __init__(self, text: str) -> None:
        """Raises SessionError for an empty text."""
        if not text.strip():
            raise SessionError("the text is empty; a session needs something to read")
        self.text = text
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        if self._line_starts[-1] == len(text):  # a final newline starts no further line
            self._line_starts.pop()

    def __len__(self) -> int:
        return len(self.text)

    @property
    def lines(self) -> int:
        return len(self._line_starts)

    def passage(self, start: int, end: int, unit: Unit = "characters") -> Passage:
        """The part from `start` up to `end`, both counted from 0.

        An end beyond the text's means the text's; that is how one reads to the end.

        Raises:
            SessionError: if start is not within the text or end not after start, or the unit is
                another than "characters" and "lines".
        """
        if unit not in ("characters", "lines"):
            raise SessionError(f"unit is {unit!r}; it must be 'characters' or 'lines'")
        for name, value in (("start", start), ("end", end)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise SessionError(f"{name} is {value!r}; it must be a whole number")
        size = len(self) if unit == "characters" else self.lines
        if not 0 <= start < size:
            raise SessionError(f"start is {start}; the text has {unit} 0 to {size - 1}")
        if end <= start:
            raise SessionError(f"end is {end}; it must be after start, which is {start}")
        end = min(end, size)
        if unit == "lines":
            start = self._line_starts[start]
            end = len(self) if end == size else self._line_starts[end]
        return Passage(start, end, self.text[start:end])


def cut(text: str, size: int, overlap: int, start: int = 0, end: int | None = None) -> list[int]:
    """Starts of windows of at most `size` characters; the last entry is the end of the text.

    Window i reaches from cut[i] to `min(cut[i] + size, end)` (see `windows`), so it shares at least
    `overlap` characters with the next. Starts move back to just after a space where one is near.

    Raises:
        SessionError: if the overlap is negative or no smaller than the size.
    """
    if not 0 <= overlap < size:
        raise SessionError(f"overlap is {overlap}; it must be at least 0 and below size {size}")
    end = len(text) if end is None else end
    starts, position = [start], start
    slack = int(_SNAP * (size - overlap))
    while position + size < end:
        following = position + size - overlap
        for back in range(slack):
            if _SPACE.match(text[following - back - 1]):
                following -= back
                break
        starts.append(following)
        position = following
    return [*starts, end]


def windows(starts: list[int], size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each window that `cut` gave the starts of."""
    end = starts[-1]
    for start, _ in pairwise(starts):
        yield start, min(start + size, end)
