"""Rows: one JSON value a line, read in one way, whoever reads them.

A line may end with CR and LF, a blank line is passed over, a file may begin with a byte order mark.
What JSON leaves open is refused: keys that occur twice, and numbers that are out of range.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from mhc_model.errors import DataError
from mhc_model.files.whole import split_lines

# Of a line of rows. A text of 64 MiB is as much as ten Bibles.
LONGEST_ROW = 64 * 2**20
DEEPEST_ROW = 100
MOST_DIGITS = 300
CHUNK = 1 << 20
JSON_SPACE = b" \t\r\n"
TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
BRACKETS = re.compile(rb"[\[\]{}]")


def read_own_rows(path: Path) -> list[Any]:
    """All rows of a file that one of our commands wrote.

    Raises:
        OSError: if the file cannot be read.
        DataError: naming file and line that are damaged.
    """
    rows = []
    for number, line in enumerate(split_lines(path.read_bytes()), start=1):
        try:
            rows.append(parse_row(line))
        except RowFault as fault:
            raise DataError(f"{path} line {number} {fault}") from None
    return rows


class RowFault(DataError):
    """What is wrong with one line, to be read after 'FILE line N'."""


class Row(NamedTuple):
    """One line of a file that is not blank.

    Attributes:
        number: of the line, from 1, counted from where reading began.
        position: its first byte in the file, or in what a .gz file holds.
        content: without the end of the line; cut off behind `LONGEST_ROW`.
    """

    number: int
    position: int
    content: bytes

    def value(self) -> Any:
        """As `parse_row`."""
        return parse_row(self.content)


def read_rows(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """The lines of a file of rows, plain or .gz, in constant memory.

    Args:
        path: of the file.
        start: first byte, where a line begins.
        stop: byte behind the last line; None reads to the end.

    Raises:
        DataError: if it cannot be read.
    """
    number, position = 0, start
    try:
        with _open(path) as file:
            file.seek(start)
            while stop is None or position < stop:
                line = file.readline(LONGEST_ROW + 1)
                if not line:
                    return
                size = len(line)
                while not line.endswith(b"\n") and (more := file.readline(CHUNK)):
                    size += len(more)
                    if more.endswith(b"\n"):
                        break
                number += 1
                if position == 0:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if content := line.strip(JSON_SPACE):
                    yield Row(number, position, content)
                position += size
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three
        raise DataError(f"{path} cannot be read: {error}") from None


def _open(path: str | Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if str(path).endswith(".gz") else open(path, "rb"))


def parse_row(content: bytes) -> Any:
    """The value of a line. NaN and Infinity are numbers, as Python writes them.

    Raises:
        RowFault: if it is no JSON, or leaves open what it means.
    """
    shown = repr(content[:80].decode("utf-8", "replace").rstrip("\r\n"))
    if len(content) > LONGEST_ROW:
        raise RowFault(f"is longer than {LONGEST_ROW:,} bytes: {shown}")
    if content.count(b"[") + content.count(b"{") > DEEPEST_ROW and _depth(content) > DEEPEST_ROW:
        raise RowFault(f"has more than {DEEPEST_ROW} brackets one in another: {shown}")
    if b"\0" in content:
        raise RowFault(f"is not JSON (it has a NUL byte): {shown}")
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
        )
    except json.JSONDecodeError as error:
        raise RowFault(f"is not JSON ({error.msg}): {shown}") from None
    except UnicodeDecodeError as error:
        raise RowFault(f"is not UTF-8 and cannot be read ({error.reason}): {shown}") from None
    except _Refused as error:
        raise RowFault(f"{error}: {shown}") from None


class _Refused(Exception):
    """What parsing refuses, in words. No ValueError, which json would take for its own."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"has the key {twice[:80]!r} twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _Refused(f"has an integer of {len(digits):,} digits, more than {MOST_DIGITS}")
    return int(digits)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused(f"has the number {text[:80]}, which is out of range")
    return value


def _depth(content: bytes) -> int:
    """Brackets one in another, those in texts left out."""
    depth = deepest = 0
    for bracket in BRACKETS.findall(TEXTS.sub(b"", content)):
        depth += 1 if bracket in (b"[", b"{") else -1
        deepest = max(deepest, depth)
    return deepest
