"""HellaSwag and ARC-Easy as a plan: four requests a problem, scored by their likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from evals.statistics import accuracy_entry
from evals.tasks.likelihood import Pair, encode_pair, likelihood_request, read_likelihood
from evals.tasks.multiple_choice import (
    DELIMITER,
    PROMPT_VERSIONS,
    SCORE_VERSION,
    ChoiceProblem,
    score_choices,
)
from evals.tasks.plan import Item, Plan, Row, check_ids, fingerprint, tokenizer_of
from mhc_model.engine import Completion, Engine, Request
from mhc_model.gates import GateValues, expand_gate_rows

METRICS = ("acc", "acc_norm")


def choice_plan(
    task: str,
    engine: Engine,
    problems: Sequence[ChoiceProblem],
    gates: GateValues | None = None,
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
        gates: None (learned), whatever `expand_gates` takes (the same for all), or a
            (n_problems, 2L) tensor, one row a problem.
        bos: put the document separator before every prompt.

    Raises:
        DataError: without problems, or with the same id twice.
        GateError: if the gates do not fit the problems or the model.
        EngineError: if the engine has no tokenizer.
    """
    check_ids([problem.id for problem in problems])
    rows = expand_gate_rows(gates, len(problems), engine.model.config)
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
    }
    return Plan(task, engine, items, facts, summarise)


def summarise(samples: Sequence[Row]) -> dict[str, Any]:
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
) -> Row:
    row: Row = {
        "id": problem.id,
        "context": problem.context,
        "choices": list(problem.choices),
        "answer": problem.answer,
    }
    if not completions:
        empty = {"logprobs": None, "greedy": None, "choice": None, "choice_norm": None}
        return {**row, **empty, "acc": False, "acc_norm": False, "gates": None}
    found = [read_likelihood(*both) for both in zip(requests, completions, strict=True)]
    score = score_choices(problem, [likelihood.logprob for likelihood in found])
    gates = completions[0].gates
    return {
        **row,
        "logprobs": [likelihood.logprob for likelihood in found],
        "greedy": [likelihood.greedy for likelihood in found],
        **score._asdict(),
        "gates": None if gates is None else list(gates),
    }
