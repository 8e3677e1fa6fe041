"""Rows of a data set: JSON lines, plain or .gz, or a data set on the hub.

A malformed row is never skipped in silence: `parse_rows` names each with its file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mhc_model.errors import DataError
from mhc_model.files import RowFault, read_rows

T = TypeVar("T")
Rows = Iterable[tuple[str, Any]]
"""Where each row is (file and line), and its value."""


@dataclass(frozen=True)
class Parsed(Generic[T]):
    """Problems of a source, and what was wrong with the rows that are none.

    Attributes:
        problems: in the order of the source.
        malformed: one message a malformed row, with file and line.
    """

    problems: list[T]
    malformed: list[str]


class NotJSON(str):
    """Why a line is no JSON; stands for its value."""


class RowError(Exception):
    """What is wrong with one row, to be read after 'FILE line N'."""


def parse_rows(
    rows: Rows, parse: Callable[[Any, int], T], limit: int | None, source: str
) -> Parsed[T]:
    """Turns rows into problems.

    Args:
        rows: see `read_file` and `read_hub`.
        parse: takes a row's value and its number from 0; raises `RowError`.
        limit: stop after N problems; None reads all.
        source: its name, for the error.

    Raises:
        DataError: if there is not one problem, or a file cannot be read.
    """
    problems: list[T] = []
    malformed: list[str] = []
    for number, (where, row) in enumerate(rows):
        if len(problems) == limit:
            break
        try:
            if isinstance(row, NotJSON):
                raise RowError(row)
            problems.append(parse(row, number))
        except RowError as error:
            malformed.append(f"{where} {error}")
    if not problems:
        reason = f": {malformed[0]}" if malformed else ""
        raise DataError(f"{source} has no problems{reason}")
    return Parsed(problems, malformed)


def split_file(directory: Path, split: str) -> Path:
    """The file of a split in a directory.

    Raises:
        DataError: if there is neither SPLIT.jsonl nor SPLIT.jsonl.gz.
    """
    candidates = [directory / f"{split}.jsonl", directory / f"{split}.jsonl.gz"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{directory} has neither {candidates[0].name} nor {candidates[1].name}")


def read_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a file of JSON lines (`mhc_model.files.read_rows`).

    Raises:
        DataError: if it cannot be read.
    """
    for row in read_rows(path):
        try:
            value = row.value()
        except RowFault as fault:
            value = NotJSON(fault)
        yield f"{path} line {row.number}", value


def read_hub(name: str, configuration: str | None, split: str, accepted: str) -> Rows:
    """The rows of a data set on the hub.

    Raises:
        DataError: if it is not there, or there is no network; `accepted` says what else there is.
    """
    # Imported here: the library takes seconds to import and only this source needs it.
    import datasets

    try:
        rows = datasets.load_dataset(name, configuration, split=split)
    except (OSError, ValueError) as error:  # not found, no network, no such configuration or split
        raise DataError(
            f"{name!r} is neither a file or directory here nor could it be read from the hub "
            f"({type(error).__name__}: {error}); {accepted}"
        ) from error
    return ((f"{name} {split} row {number}", row) for number, row in enumerate(rows, start=1))
