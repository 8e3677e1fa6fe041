"""Questions with answers out of files, data sets of the hub and the built-in generator.

Rows are those of problems, of instructions or of prompts, and may say under which gates the answer
is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evals.problems import Problem, RowError, find_rows, parse_rows, with_words
from evals.tasks import document
from mhc_model.config import Behaviour
from mhc_model.errors import DataError
from train.config import DataConfig
from train.data.builtin import WHERE, Asked, builtin_problems
from train.data.corpus import spread
from train.data.documents import is_held_out
from train.data.groups import Group, Words, row_group, split_words

# Keys of a row that hold its question and its answer. The first pair that is there counts; what
# stands under "input" belongs to the question.
FIELDS = (
    ("question", "answer"),
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
# Configurations of data sets that have no default one.
SUBSETS = {"openai/gsm8k": "main"}
ACCEPTED = (
    "accepted: a file of JSON lines (.jsonl or .jsonl.gz), a directory with {split}.jsonl, or a "
    "hub name such as openai/gsm8k"
)


def split_questions(
    config: DataConfig, behaviours: Mapping[str, Behaviour]
) -> tuple[list[Asked], list[Asked], dict[Group, str]]:
    """Training and held-out questions, chosen as `prepare_corpus` chooses documents.

    Args:
        config: the sources.
        behaviours: as for `prepare_corpus`.

    Returns:
        Both, and file and line of the first row of every group.

    Raises:
        DataError: naming file, line and what is wrong.
        ConfigError: if a behaviour of built-in problems is unknown, or has no style.
    """
    first: dict[Group, str] = {}
    training = builtin_problems(config, behaviours, "train")
    held_out = builtin_problems(config, behaviours, "test")
    for asked in (*training, *held_out):
        if asked.group is not None:
            first.setdefault(asked.group, WHERE)
    words = tuple(behaviours) if config.style_words else None
    read = [asked for source in config.files for asked in _read(source, "train", words, first)]
    if config.validation_files:
        sources = config.validation_files
        apart = [asked for source in sources for asked in _read(source, "test", words, first)]
    else:
        sides = [_is_held_out(asked, config.validation_share) for asked in read]
        apart = [asked for asked, side in zip(read, sides, strict=True) if side]
        read = [asked for asked, side in zip(read, sides, strict=True) if not side]
    return training + read, held_out + spread(apart, config.validation_documents), first


def _is_held_out(asked: Asked, share: float) -> bool:
    text = document(asked.problem) if asked.question is None else asked.question
    return is_held_out(text, share)


def _read(source: str, split: str, words: Words, first: dict[Group, str]) -> list[Asked]:
    rows, name = find_rows(source, split, SUBSETS.get(source), ACCEPTED)

    def parse(located: Any, number: int) -> Asked:
        where, row = located if isinstance(located, tuple) else (source, located)
        asked = _example(row, f"{name}-{number}", words)
        if asked.group is not None:
            first.setdefault(asked.group, where)
        return asked

    parsed = parse_rows(_located(rows), parse, None, source)
    if parsed.malformed:
        raise DataError(parsed.malformed[0])
    return parsed.problems


def _located(rows: Any) -> Iterator[tuple[str, Any]]:
    """Rows that know where they are; what is no JSON object stays what it is."""
    for where, row in rows:
        yield where, (where, row) if isinstance(row, dict) else row


def _example(row: Any, name: str, words: Words) -> Asked:
    fields = row if type(row) is dict else {}
    for question, answer in FIELDS:
        match fields.get(question), fields.get(answer), fields.get("input", ""):
            case str(asked), str(given), str(more) if asked.strip() and given.strip():
                text = f"{asked}\n{more}" if more.strip() else asked
                return _with_group(Problem(name, text, given), fields, words)
    pairs = ", ".join(f"{question!r} and {answer!r}" for question, answer in FIELDS)
    raise RowError(f"has none of {pairs} as texts that are not empty: {str(row)[:80]!r}")


def _with_group(problem: Problem, row: dict[str, Any], words: Words) -> Asked:
    try:
        group = row_group(row)
        question = None if group is None else problem.question
        spoken, group = split_words(group, words)
    except DataError as error:
        raise RowError(str(error)) from None
    return Asked(with_words(problem, spoken), group, question)
