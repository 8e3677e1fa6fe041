"""HellaSwag and ARC-Easy as lm-evaluation-harness defines them: prompts, choices, scores.

Everything here is a pure function of its arguments. It follows the harness's tasks `hellaswag` and
`arc_easy`, version 1.0 each (0-shot): a choice is what the model finds likeliest after the
context and one space; `acc` takes the sum of log-probabilities, `acc_norm` the sum over the
choice's length in characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evals.problems.rows import Parsed, RowError, parse_rows
from evals.problems.sources import find_rows
from mhc_model.errors import DataError

# Results compare only where these agree; raise them with any change of the text or the rules.
PROMPT_VERSIONS = {"hellaswag": "hellaswag-harness-1", "arc_easy": "arc-easy-harness-1"}
SCORE_VERSION = "multiple-choice-harness-1"
DELIMITER = " "  # between the context and a choice

_FEWEST_CHOICES = 2


@dataclass(frozen=True)
class ChoiceProblem:
    """A context and what may follow it.

    Attributes:
        id: stable and unique within its source: results of two runs are paired by it.
        context: text before the choices.
        choices: two or more texts, without the space before them.
        answer: position of the right one.
    """

    id: str
    context: str
    choices: tuple[str, ...]
    answer: int


class ChoiceScore(NamedTuple):
    """Which choice is likeliest, and whether it is the right one.

    Attributes:
        acc, acc_norm: whether the choice is right.
        choice, choice_norm: position of the likeliest one, by the sum of log-probabilities and by
            the sum over the length.
    """

    acc: bool
    acc_norm: bool
    choice: int
    choice_norm: int


class Source(NamedTuple):
    """Where a task's rows are."""

    parse: Callable[[Any], tuple[str, tuple[str, ...], int]]
    split: str
    hub: str
    configuration: str | None
    fields: str


def score_choices(problem: ChoiceProblem, logprobs: Sequence[float]) -> ChoiceScore:
    """Compares the likeliest choice with the right one; of equals the first one counts.

    Args:
        problem: whose choices they are.
        logprobs: of each choice, summed over its tokens.
    """
    positions = range(len(problem.choices))
    choice = max(positions, key=lambda i: logprobs[i])
    # A choice that cleaning left empty is never the likeliest: -inf, as dividing by 0 gives.
    per_character = [
        logprob / len(text) if text else -math.inf
        for logprob, text in zip(logprobs, problem.choices, strict=True)
    ]
    normalised = max(positions, key=lambda i: per_character[i])
    answer = problem.answer
    return ChoiceScore(choice == answer, normalised == answer, choice, normalised)


def load_choices(task: str, source: str, limit: int | None = None) -> Parsed[ChoiceProblem]:
    """Reads the problems of a multiple-choice task.

    Args:
        task: "hellaswag" or "arc_easy".
        source: a file of JSON lines, plain or .gz; a directory with the file of the split that the
            harness scores (validation.jsonl of HellaSwag, test.jsonl of ARC-Easy); or the name of
            a data set on the hub.
        limit: the first N problems; None reads all.

    Returns:
        Problems, ids numbered from 0 by row, and a message for every malformed row.

    Raises:
        DataError: if the source is not found, cannot be read or has no problem.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; it must be at least 1")
    about = SOURCES[task]
    accepted = (
        f"accepted for {task}: a file of JSON lines with {about.fields} (.jsonl or .jsonl.gz), a "
        f"directory with {about.split}.jsonl or {about.split}.jsonl.gz, or a hub name such as "
        f"{about.hub}"
    )
    rows, name = find_rows(source, about.split, about.configuration, accepted)

    def parse(row: Any, number: int) -> ChoiceProblem:
        if not isinstance(row, dict):
            raise RowError(f"is {type(row).__name__}, not an object with {about.fields}")
        return ChoiceProblem(f"{name}-{number:05d}", *about.parse(row))

    return parse_rows(rows, parse, limit, source)


def hellaswag_text(text: str) -> str:
    """Takes WikiHow's marks out of a text, as the harness does."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _hellaswag(row: dict[str, Any]) -> tuple[str, tuple[str, ...], int]:
    """A row of the original files (ctx_a and ctx_b), or of cleaned ones that kept only ctx."""
    activity = _text(row, "activity_label")
    if "ctx_a" in row:
        context = (
            f"{_text(row, 'ctx_a', empty=True)} {_text(row, 'ctx_b', empty=True).capitalize()}"
        )
    else:
        context = _text(row, "ctx")
    endings = row.get("endings")
    choices = tuple(hellaswag_text(ending) for ending in _texts(endings, "endings"))
    label = row.get("label")
    try:
        answer = int(label)
    except (TypeError, ValueError):
        answer = -1
    if isinstance(label, bool) or not 0 <= answer < len(choices):
        raise RowError(f"has label {label!r}; it must be 0 to {len(choices) - 1}")
    return hellaswag_text(f"{activity}: {context}"), choices, answer


def _arc_easy(row: dict[str, Any]) -> tuple[str, tuple[str, ...], int]:
    """A row with labels A to E or 1 to 5, looked up in the row: not all rows have the same ones."""
    question = _text(row, "question")
    choices = row.get("choices")
    if not isinstance(choices, dict):
        raise RowError("lacks 'choices': it must be an object with text and label")
    texts, labels = _texts(choices.get("text"), "text"), _texts(choices.get("label"), "label")
    if len(texts) != len(labels) or len(set(labels)) != len(labels):
        raise RowError(f"has {len(texts)} choices and labels {labels}: each needs its own label")
    key = row.get("answerKey")
    if key not in labels:
        raise RowError(f"has answerKey {key!r}; its labels are {', '.join(labels)}")
    return f"Question: {question}\nAnswer:", tuple(texts), labels.index(key)


def _text(row: dict[str, Any], field: str, empty: bool = False) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise RowError(f"lacks {field!r}: it must be a text{'' if empty else ' that is not empty'}")
    return value


def _texts(value: Any, field: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RowError(f"lacks {field!r}: it must be a list of texts")
    if len(value) < _FEWEST_CHOICES or not all(text.strip() for text in value):
        raise RowError(f"has {field!r} of {value!r}: two texts at least, none of them empty")
    return value


SOURCES = {
    "hellaswag": Source(
        _hellaswag,
        "validation",
        "Rowan/hellaswag",
        None,
        "activity_label, ctx_a and ctx_b (or ctx), endings and label",
    ),
    "arc_easy": Source(
        _arc_easy,
        "test",
        "allenai/ai2_arc",
        "ARC-Easy",
        "question, choices (text and label) and answerKey",
    ),
}
