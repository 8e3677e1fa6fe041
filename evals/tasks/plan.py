"""What a task asks of an engine, problem by problem, and how the answers come back.

A task becomes a `Plan`: items with requests, and functions of their completions. Plans know nothing
of where they run: on one engine (`run_items`) or on several replicas (`evals.replicas`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mhc_model.decoder import Decoder
from mhc_model.engine import Completion, Engine, Request
from mhc_model.errors import DataError, EngineError
from mhc_model.gates import RequestGates, expand_gate_rows
from mhc_model.tokenizer import Tokenizer

PROMPT_ONLY = {"scored_under": "the prompt's gates"}
"""A fact of tasks that only score text, where prompt and answer have different gates."""

Sample = dict[str, Any]
"""One problem's outcome as samples.jsonl has it; `id` pairs the results of two runs."""


@dataclass(frozen=True)
class Item:
    """One problem.

    Attributes:
        id: the problem's.
        requests: none where nothing fits the context.
        finish: makes the sample of the completions, one a request and in their order.
    """

    id: str
    requests: tuple[Request, ...]
    finish: Callable[[Sequence[Completion]], Sample]


Runner = Callable[[Sequence[Item]], Iterator[tuple[Item, list[Completion]]]]
"""Runs items, on whatever it has, and yields each when its last request has ended."""


@dataclass(frozen=True)
class Plan:
    """A task on given problems for a given model.

    Attributes:
        task: its name.
        engine: for whose model it is.
        items: at least one, ids unique.
        facts: what is known before anything runs, among it `prompts_sha256`: equal for comparable
            runs.
        summarise: the scores of all samples.
    """

    task: str
    engine: Engine
    items: list[Item]
    facts: dict[str, Any]
    summarise: Callable[[Sequence[Sample]], dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        """The samples' ids, in order."""
        return [item.id for item in self.items]

    def run(self, runner: Runner | None = None, done: Collection[str] = ()) -> Iterator[Sample]:
        """Yields the samples that are not done, as they end; on the plan's engine by default."""
        todo = [item for item in self.items if item.id not in done]
        finished = run_items(self.engine, todo) if runner is None else runner(todo)
        for item, completions in finished:
            yield item.finish(completions)


def fingerprint(parts: Iterable[Iterable[str]]) -> str:
    """sha256 of texts, kept apart."""
    digest = hashlib.sha256()
    for group in parts:
        for part in group:
            digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def check_ids(ids: Sequence[str]) -> None:
    """Refuses what cannot be paired.

    Raises:
        DataError: if there are no problems, or two have the same id.
    """
    if len(set(ids)) != len(ids) or not ids:
        raise DataError(f"{len(ids)} problems: there must be some, with different ids")


def tokenizer_of(engine: Engine) -> Tokenizer:
    """The engine's tokenizer.

    Raises:
        EngineError: if it has none.
    """
    if engine.tokenizer is None:
        raise EngineError("evaluation needs an engine that has a tokenizer")
    return engine.tokenizer


def gate_rows(gates: RequestGates, count: int, model: Decoder) -> Tensor | None:
    """One row of gates a problem for a model: see `mhc_model.gates.expand_gate_rows`.

    Returns:
        (count, 2L), (count, 2, 2L) where prompt and answer differ, or None for the learned gates.

    Raises:
        GateError: if they do not fit the problems or the model.
    """
    learned = None if model.config.gateless else model.learned_gates().detach()
    return expand_gate_rows(gates, count, model.config, learned)


def scoring_gates(rows: Tensor | None) -> tuple[Tensor | None, dict[str, str]]:
    """Gates of text that is only scored, and what to say of them in a plan's facts.

    Such text is read as a prompt is, whole and at once: it runs under the prompt's gates.

    Args:
        rows: of `gate_rows`.

    Returns:
        (count, 2L) or None, and a fact where the answer's gates were left out.
    """
    if rows is None or rows.ndim == 2:
        return rows, {}
    return rows[:, 0], PROMPT_ONLY


def run_items(engine: Engine, items: Sequence[Item]) -> Iterator[tuple[Item, list[Completion]]]:
    """Runs items on an idle engine; yields each as soon as its last request has ended.

    The engine's prefix cache computes what the requests of one item share only once.

    Raises:
        EngineError: if the engine is busy.
    """
    if engine.has_work:
        raise EngineError("evaluation needs an idle engine")
    owners: dict[str, tuple[Item, int]] = {}
    missing: dict[str, list[Completion | None]] = {}
    left = iter(items)
    more = True
    while more or engine.has_work:
        while more and engine.waiting < engine.max_batch:
            item = next(left, None)
            more = item is not None
            if item is None:
                break
            if not item.requests:
                yield item, []
                continue
            missing[item.id] = [None] * len(item.requests)
            for index, request in enumerate(item.requests):
                owners[engine.add(request)] = (item, index)
        for completion in engine.step():
            item, index = owners.pop(completion.request_id)
            missing[item.id][index] = completion
            found = [one for one in missing[item.id] if one is not None]
            if len(found) == len(item.requests):
                del missing[item.id]
                yield item, found


def evaluate(plan: Plan) -> list[Sample]:
    """Runs a whole plan on its engine, keeping nothing on disk; samples in the plan's order."""
    samples = {sample["id"]: sample for sample in plan.run()}
    return [samples[identity] for identity in plan.ids]
