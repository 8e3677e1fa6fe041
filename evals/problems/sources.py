"""Where GSM8K's problems come from: JSON lines, the built-in generator, or the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from evals.problems.problem import Problem
from evals.problems.rows import Parsed, RowError, parse_rows, read_file, read_hub, split_file
from evals.problems.word_problems import LEVELS, SPLITS, generate
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
    """Reads problems in GSM8K's format; every row must be one.

    Args and errors as `read_problems`.

    Raises:
        DataError: besides, if a row is malformed; the message names the file, the line and what is
            missing.
    """
    parsed = read_problems(source, split, limit, seed)
    if parsed.malformed:
        raise DataError(parsed.malformed[0])
    return parsed.problems


def read_problems(
    source: str, split: str = "test", limit: int | None = None, seed: int = 0
) -> Parsed[Problem]:
    """Reads problems in GSM8K's format and says which rows are none.

    Args:
        source: a file or directory of JSON lines, plain or .gz; `builtin:1` or `builtin:1,2`, whose
            levels alternate; or the name of a data set on the hub (its configuration `main`).
        split: "train" or "test"; a single file has no splits and is read whatever this says.
        limit: the first N problems; None reads all, and 1,000 of a built-in source.
        seed: of the built-in generator; other sources have a fixed order.

    Returns:
        Problems in the order of the source, ids numbered from 0 by row.

    Raises:
        DataError: if the source is not found, cannot be read or has no problem.
    """
    if split not in SPLITS:
        raise DataError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; it must be at least 1")
    if source.startswith(BUILTIN):
        count = BUILTIN_COUNT if limit is None else limit
        return Parsed(_builtin(source, split, count, seed), [])
    rows, name = find_rows(source, split, "main", ACCEPTED)

    def parse(row: Any, number: int) -> Problem:
        return Problem(f"{name}-{number:05d}", *_checked_fields(row))

    return parse_rows(rows, parse, limit, source)


def find_rows(source: str, split: str, configuration: str | None, accepted: str) -> Any:
    """The rows of a file, of a split of a directory, or of a data set on the hub, and their name.

    Raises:
        DataError: if there is nothing of that name; `accepted` says what would be right.
    """
    path = Path(source)
    if path.is_dir():
        return read_file(split_file(path, split)), split
    if path.is_file():
        return read_file(path), path.name.split(".")[0]
    # A name with .jsonl or .gz is a file that is not there, not a data set.
    if _HUB_NAME.fullmatch(source) and path.suffix not in (".jsonl", ".gz", ".json"):
        return read_hub(source, configuration, split, accepted), split
    raise DataError(f"no problems at {source!r}; {accepted}")


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


def _checked_fields(row: Any) -> tuple[str, str]:
    if not isinstance(row, dict):
        raise RowError(f"is {type(row).__name__}, not an object with question and answer")
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise RowError(f"lacks {field!r}: it must be a text that is not empty")
    if not _FINAL_NUMBER.search(row["answer"]):
        raise RowError("has an answer without a last line '#### NUMBER'")
    return row["question"], row["answer"]
