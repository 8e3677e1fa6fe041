"""HellaSwag and ARC-Easy as lm-evaluation-harness defines them, and as plans.

They follow the harness's tasks `hellaswag` and `arc_easy`, version 1.0 each (0-shot): a choice is
what the model finds likeliest after the context and one space; `acc` takes the sum of
log-probabilities, `acc_norm` the sum over the choice's length in characters.

Problems and scores are pure functions of their arguments. The plan asks for the likelihood of each
choice, one request a choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from evals.problems import Parsed, RowError, find_rows, parse_rows
from evals.settings import ARC_EASY, HELLASWAG
from evals.statistics import accuracy_entry
from evals.tasks.likelihood import Pair, encode_pair, likelihood_request, read_likelihood
from evals.tasks.plan import (
    Item,
    Plan,
    Sample,
    check_ids,
    fingerprint,
    gate_rows,
    scoring_gates,
    tokenizer_of,
)
from mhc_model.engine import Completion, Engine, Request
from mhc_model.errors import DataError
from mhc_model.gates import RequestGates

# Results compare only where these agree; raise them with any change of the text or the rules.
PROMPT_VERSIONS = {HELLASWAG: "hellaswag-harness-1", ARC_EASY: "arc-easy-harness-1"}
SCORE_VERSION = "multiple-choice-harness-1"
DELIMITER = " "  # between the context and a choice
METRICS = ("acc", "acc_norm")

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


class ChoiceRows(NamedTuple):
    """Where a task's rows are, and how one becomes context, choices and answer."""

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
    about = CHOICE_ROWS[task]
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


CHOICE_ROWS = {
    HELLASWAG: ChoiceRows(
        _hellaswag,
        "validation",
        "Rowan/hellaswag",
        None,
        "activity_label, ctx_a and ctx_b (or ctx), endings and label",
    ),
    ARC_EASY: ChoiceRows(
        _arc_easy,
        "test",
        "allenai/ai2_arc",
        "ARC-Easy",
        "question, choices (text and label) and answerKey",
    ),
}


def choice_plan(
    task: str,
    engine: Engine,
    problems: Sequence[ChoiceProblem],
    gates: RequestGates = None,
    bos: bool = True,
) -> Plan:
    """The task on these problems.

    Samples hold context, choices and answer, the summed `logprobs` of the choices and whether each
    is `greedy`, the `choice` and `choice_norm` taken, `acc` and `acc_norm`, and the gates. Where
    the context is too long its start is cut off (`cut`); where a choice alone is too long the
    problem counts as wrong (`too_long`).

    Args:
        task: "hellaswag" or "arc_easy".
        engine: whose tokenizer and context are used.
        problems: at least one, ids unique.
        gates: what `resolve_gates` takes (the same for all), or a (n_problems, 2L) tensor, one row
            a problem, or a (n_problems, 2, 2L) one of prompt and answer: choices are only scored,
            so the prompt's count.
        bos: put the document separator before every prompt.

    Raises:
        DataError: without problems, or with the same id twice.
        GateError: if the gates do not fit the problems or the model.
        EngineError: if the engine has no tokenizer.
    """
    check_ids([problem.id for problem in problems])
    rows, about_gates = scoring_gates(gate_rows(gates, len(problems), engine.model))
    items = []
    cut = 0
    for position, problem in enumerate(problems):
        own = None if rows is None else rows[position]
        item, is_cut = _item(engine, problem, own, bos)
        items.append(item)
        cut += is_cut
    texts = ((p.id, p.context, *p.choices, str(p.answer)) for p in problems)
    facts = {
        "n": len(problems),
        "n_shot": 0,
        "prompt_version": PROMPT_VERSIONS[task],
        "score_version": SCORE_VERSION,
        "prompts_sha256": fingerprint(texts),
        "cut": cut,
        **about_gates,
    }
    return Plan(task, engine, items, facts, summarise)


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Scores of all samples."""
    return {
        **{
            metric: accuracy_entry(sum(sample[metric] for sample in samples), len(samples))
            for metric in METRICS
        },
        "too_long": sum(sample["logprobs"] is None for sample in samples),
    }


def choice_context(engine: Engine, problem: ChoiceProblem, bos: bool = True) -> list[int]:
    """The context as a gate policy reads it."""
    return _pairs(engine, problem, bos)[0].context[-engine.max_seq_len :]


def _pairs(engine: Engine, problem: ChoiceProblem, bos: bool) -> list[Pair]:
    tokenizer = tokenizer_of(engine)
    return [
        encode_pair(tokenizer, problem.context, DELIMITER + choice, bos)
        for choice in problem.choices
    ]


def _item(
    engine: Engine, problem: ChoiceProblem, gates: Tensor | None, bos: bool
) -> tuple[Item, bool]:
    """The problem's item, and whether its context was cut."""
    pairs = _pairs(engine, problem, bos)
    asked = [
        likelihood_request(pair, gates, engine.max_seq_len, f"{problem.id}/{index}")
        for index, pair in enumerate(pairs)
    ]
    requests = tuple(request for request in asked if request is not None)
    if len(requests) < len(asked):
        return Item(problem.id, (), lambda completions: _sample(problem, (), completions)), False
    cut = any(
        len(pair.context) + len(pair.continuation) > len(request.prompt)
        for pair, request in zip(pairs, requests, strict=True)
    )
    return (
        Item(problem.id, requests, lambda completions: _sample(problem, requests, completions)),
        cut,
    )


def _sample(
    problem: ChoiceProblem, requests: Sequence[Request], completions: Sequence[Completion]
) -> Sample:
    sample: Sample = {
        "id": problem.id,
        "context": problem.context,
        "choices": list(problem.choices),
        "answer": problem.answer,
    }
    if not completions:
        empty = {"logprobs": None, "greedy": None, "choice": None, "choice_norm": None}
        return {**sample, **empty, "acc": False, "acc_norm": False, "gates": None}
    found = [read_likelihood(*both) for both in zip(requests, completions, strict=True)]
    score = score_choices(problem, [likelihood.logprob for likelihood in found])
    gates = completions[0].gates
    return {
        **sample,
        "logprobs": [likelihood.logprob for likelihood in found],
        "greedy": [likelihood.greedy for likelihood in found],
        **score._asdict(),
        "gates": None if gates is None else list(gates),
    }
