"""What a caller wrote, kept apart from what the chat template writes, through the template.

A rendered conversation is one text, in which names of special tokens become these tokens. What a
caller wrote must never do so: neither a whole name in a message, its `name` or any other field that
a template may print, nor parts of one that only the template puts together. So before the template
runs, numbers stand in for them; no message can hold a number drawn after it was written, and
templates change neither digits' case nor their JSON.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Values that templates compare and callers do not write freely, such as a JSON schema's types.
_COMPARED = "type"


class StandIns:
    """Of one rendering."""

    def __init__(self, names: Iterable[str]) -> None:
        """Takes the names of the special tokens."""
        ordered = sorted(names, key=len, reverse=True)
        one_of = "|".join(map(re.escape, ordered)) or "$^"
        # A template may write what it got in another case.
        self._any_case = re.compile(one_of, re.IGNORECASE)
        self._names = re.compile(one_of)
        folded = [name.lower() for name in ordered]
        self._beginnings = {name[:size] for name in folded for size in range(1, len(name))}
        self._endings = {name[-size:] for name in folded for size in range(1, len(name))}
        self._folded = folded
        self._longest = max(map(len, folded), default=0)
        self._mark = f"{secrets.randbelow(10**30):030d}"
        self._found = re.compile(self._mark + r"(\d{8})")
        self._texts: list[str] = []

    def add(self, text: str) -> str:
        """A number that `split` turns into `text`."""
        self._texts.append(text)
        return f"{self._mark}{len(self._texts) - 1:08d}"

    def hide(self, value: Any, key: str = "") -> Any:
        """A text with stand-ins, or a JSON value with them in all its texts."""
        match value:
            case str():
                return self._hide(value, key)
            case Mapping():
                return {self._whole(str(k)): self.hide(each, str(k)) for k, each in value.items()}
            case list() | tuple():
                return [self.hide(each, key) for each in value]
            case _:
                return value

    def split(self, rendered: str) -> Iterator[tuple[str, str | None]]:
        """Texts and the special tokens between them, in order; None after the last text."""
        position = 0
        for found in (*self._names.finditer(rendered), None):
            text = rendered[position : found.start() if found else None]
            yield self._restored(text), None if found is None else found[0]
            position = found.end() if found else position

    def _restored(self, text: str) -> str:
        return self._found.sub(lambda found: self._texts[int(found[1])], text)

    def _whole(self, text: str) -> str:
        return self._any_case.sub(lambda found: self.add(found[0]), text)

    def _hide(self, text: str, key: str) -> str:
        """Hides whole names, and at both ends what another text may complete to one."""
        inner = text.strip()  # as templates may do
        if not inner or not self._longest:
            return text
        before, after = text[: text.index(inner)], text[text.index(inner) + len(inner) :]
        lower = inner.lower()
        if key != _COMPARED and any(lower in name for name in self._folded):
            return before + self.add(inner) + after
        if len(lower) != len(inner):  # some letters grow: no places to compare
            return self.add(text)
        sizes = range(min(self._longest - 1, len(inner)), 0, -1)
        first = next((size for size in sizes if lower[:size] in self._endings), 0)
        last = next((size for size in sizes if lower[-size:] in self._beginnings), 0)
        if first + last > len(inner):
            return before + self.add(inner) + after
        parts = [inner[:first], inner[first : len(inner) - last], inner[len(inner) - last :]]
        shown = [self.add(parts[0]) if first else "", self._whole(parts[1])]
        return before + "".join(shown) + (self.add(parts[2]) if last else "") + after
