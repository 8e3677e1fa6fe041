"""Where problems come from: JSON lines, the built-in generator, or a data set on the hub."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from evals.problem import Problem
from evals.word_problems import LEVELS, SPLITS, generate
from mhc_model.errors import DataError

BUILTIN = "builtin:"
BUILTIN_COUNT = 1000  # problems of a built-in source where no limit is given
ACCEPTED = (
    "accepted: a file of JSON lines with question and answer (.jsonl or .jsonl.gz), a directory "
    "with {split}.jsonl or {split}.jsonl.gz, builtin:LEVEL or builtin:LEVEL,LEVEL with levels "
    f"{LEVELS[0]} to {LEVELS[-1]}, or a hub name such as openai/gsm8k"
)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FINAL_NUMBER = re.compile(r"#### -?[0-9.,]*[0-9][0-9.,]*\s*\Z")


def load_problems(
    source: str, split: str = "test", limit: int | None = None, seed: int = 0
) -> list[Problem]:
    """Reads problems in GSM8K's format.

    Args:
        source: a file or directory of JSON lines, plain or .gz; `builtin:1` or `builtin:1,2`, whose
            levels alternate; or the name of a data set on the hub (its configuration `main`).
        split: "train" or "test"; a single file has no splits and is read whatever this says.
        limit: the first N problems; None reads all, and 1,000 of a built-in source.
        seed: of the built-in generator; other sources have a fixed order.

    Returns:
        Problems in the order of the source, ids numbered from 0 by position.

    Raises:
        DataError: if the source is not found, empty, or has a malformed row; the message names
            the file, the line and what is missing.
    """
    if split not in SPLITS:
        raise DataError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; it must be at least 1")
    if source.startswith(BUILTIN):
        return _builtin(source, split, BUILTIN_COUNT if limit is None else limit, seed)
    path = Path(source)
    if path.is_dir():
        return _read_file(_split_file(path, split), split, limit)
    if path.is_file():
        return _read_file(path, path.name.split(".")[0], limit)
    # A name with .jsonl or .gz is a file that is not there, not a data set.
    if _HUB_NAME.fullmatch(source) and path.suffix not in (".jsonl", ".gz", ".json"):
        return _read_hub(source, split, limit)
    raise DataError(f"no problems at {source!r}; {ACCEPTED}")


def _builtin(source: str, split: str, count: int, seed: int) -> list[Problem]:
    names = source.removeprefix(BUILTIN).split(",")
    known = {str(level): level for level in LEVELS}
    levels = [known[name.strip()] for name in names if name.strip() in known]
    if len(levels) != len(names) or len(set(levels)) != len(levels):
        raise DataError(f"{source!r} is no list of different levels; {ACCEPTED}")
    # Row i is of level i mod k, so that any first part of the list is mixed as the whole.
    rows = [
        generate(level, split, len(range(position, count, len(levels))), seed)
        for position, level in enumerate(levels)
    ]
    return [rows[i % len(rows)][i // len(rows)] for i in range(count)]


def _split_file(directory: Path, split: str) -> Path:
    candidates = [directory / f"{split}.jsonl", directory / f"{split}.jsonl.gz"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{directory} has neither {candidates[0].name} nor {candidates[1].name}")


def _read_file(path: Path, name: str, limit: int | None) -> list[Problem]:
    return _to_problems(_read_rows(path), str(path), name, limit)


def _read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (where, parsed line); skips blank lines."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path} line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{where} is not JSON ({error.msg}): {line[:80]!r}") from None
                yield where, row
    except (
        OSError,
        EOFError,
        UnicodeDecodeError,
    ) as error:  # a damaged gzip file raises the first two
        raise DataError(f"{path} cannot be read: {error}") from None


def _read_hub(name: str, split: str, limit: int | None) -> list[Problem]:
    # Imported here: the library takes seconds to import and only this source needs it.
    import datasets

    try:
        rows = datasets.load_dataset(name, "main", split=split)
    except (OSError, ValueError) as error:  # not found, no network, no such configuration or split
        raise DataError(
            f"{name!r} is neither a file or directory here nor could it be read from the hub "
            f"({type(error).__name__}: {error}); {ACCEPTED}"
        ) from error
    located = ((f"{name} {split} row {number}", row) for number, row in enumerate(rows, start=1))
    return _to_problems(located, name, split, limit)


def _to_problems(
    rows: Iterable[tuple[str, Any]], source: str, name: str, limit: int | None
) -> list[Problem]:
    """Checks rows and numbers them `name-00000`, ...: ids cannot repeat."""
    problems: list[Problem] = []
    for where, row in rows:
        if limit is not None and len(problems) == limit:
            break
        question, answer = _checked_fields(row, where)
        problems.append(Problem(f"{name}-{len(problems):05d}", question, answer))
    if not problems:
        raise DataError(f"{source} has no problems; {ACCEPTED}")
    return problems


def _checked_fields(row: Any, where: str) -> tuple[str, str]:
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}, not an object with question and answer")
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise DataError(f"{where} lacks {field!r}: it must be a text that is not empty")
    if not _FINAL_NUMBER.search(row["answer"]):
        raise DataError(f"{where} has an answer without a last line '#### NUMBER'")
    return row["question"], row["answer"]
