"""GSM8K as a plan: one greedy answer a problem, scored by both extractions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from evals.problems.problem import Problem
from evals.statistics import accuracy_entry
from evals.tasks.gsm8k_pure import (
    EXTRACTION_VERSION,
    PROMPT_VERSION,
    STOP_STRINGS,
    gold_answer,
    prompt,
    score,
)
from evals.tasks.plan import Item, Plan, Row, check_ids, fingerprint, tokenizer_of
from mhc_model.engine import Completion, Engine, Request, SamplingParams
from mhc_model.errors import EngineError
from mhc_model.gates import GateValues, expand_gate_rows
from mhc_model.tokenizer import Tokenizer

EXTRACTIONS = ("strict", "flexible")
MAX_TOKENS = 256  # lm-evaluation-harness's default; its gsm8k task sets none
TOO_LONG = "too_long"  # finish reason of a prompt that leaves no room for a single token


@dataclass(frozen=True)
class Sample:
    """One problem's outcome; results of two runs are paired by `id`.

    Attributes:
        id: the problem's.
        prompt: text given to the model.
        completion: text that it generated, without what ended it.
        answer: the right one, normalised.
        strict, flexible: whether each extraction is right.
        strict_answer, flexible_answer: what was extracted.
        gates: the 2L gates used; None for a plain model, or where nothing ran.
        finish_reason: the engine's, or "too_long" for a prompt that does not fit.
        prompt_tokens: tokens of the prompt, document separator included.
        tokens: number of generated tokens.
    """

    id: str
    prompt: str
    completion: str
    answer: str
    strict: bool
    flexible: bool
    strict_answer: str
    flexible_answer: str
    gates: tuple[float, ...] | None
    finish_reason: str
    prompt_tokens: int
    tokens: int


def prompt_tokens(
    tokenizer: Tokenizer, problem: Problem, shots: Sequence[Problem] = (), bos: bool = True
) -> list[int]:
    """The prompt as the model was trained to see it: after the document separator."""
    return tokenizer.encode(prompt(problem, shots), bos=bos)


def gsm8k_plan(
    task: str,
    engine: Engine,
    problems: Sequence[Problem],
    gates: GateValues | None = None,
    shots: Sequence[Problem] = (),
    max_tokens: int = MAX_TOKENS,
    bos: bool = True,
) -> Plan:
    """Greedy answers to these problems; samples are `Sample`s.

    Args:
        task: its name in the results.
        engine: whose tokenizer and context are used.
        problems: at least one, ids unique.
        gates: None (learned), whatever `expand_gates` takes (the same for all), or a
            (n_problems, 2L) tensor, one row a problem.
        shots: worked examples put before every question.
        max_tokens: of an answer. Where prompt and answer exceed the context, the answer's limit is
            cut to what is left; a prompt that leaves nothing counts as wrong. Both are counted.
        bos: put the document separator before every prompt.

    Raises:
        DataError: without problems, or with the same id twice.
        GateError: if the gates do not fit the problems or the model.
        EngineError: if the engine has no tokenizer, or max_tokens is below 1.
    """
    check_ids([problem.id for problem in problems])
    if max_tokens < 1:
        raise EngineError(f"max_tokens is {max_tokens}; it must be at least 1")
    tokenizer = tokenizer_of(engine)
    rows = expand_gate_rows(gates, len(problems), engine.model.config)
    items = []
    cut = 0
    for position, problem in enumerate(problems):
        tokens = prompt_tokens(tokenizer, problem, shots, bos)
        room = engine.max_seq_len - len(tokens)
        cut += 1 <= room < max_tokens
        own = None if rows is None else rows[position]
        items.append(_item(problem, shots, tokens, own, min(max_tokens, room)))
    facts = {
        "n": len(problems),
        "n_shot": len(shots),
        "prompt_version": PROMPT_VERSION,
        "extraction_version": EXTRACTION_VERSION,
        "prompts_sha256": fingerprint(
            (problem.id, prompt(problem, shots), gold_answer(problem)) for problem in problems
        ),
        "max_tokens": max_tokens,
        "max_tokens_cut": cut,
    }
    return Plan(task, engine, items, facts, summarise)


def summarise(samples: Sequence[Row]) -> dict[str, Any]:
    """Scores of all samples."""
    return {
        **{
            name: accuracy_entry(sum(sample[name] for sample in samples), len(samples))
            for name in EXTRACTIONS
        },
        "too_long": sum(sample["finish_reason"] == TOO_LONG for sample in samples),
        "generated_tokens": sum(sample["tokens"] for sample in samples),
    }


def _item(
    problem: Problem, shots: Sequence[Problem], tokens: list[int], gates: Tensor | None, limit: int
) -> Item:
    requests: tuple[Request, ...] = ()
    if limit >= 1:
        sampling = SamplingParams(max_tokens=limit, stop=STOP_STRINGS)
        requests = (Request(tokens, gates, sampling, problem.id),)

    def finish(completions: Sequence[Completion]) -> Row:
        done = completions[0] if completions else None
        return asdict(_sample(problem, shots, len(tokens), done))

    return Item(problem.id, requests, finish)


def _sample(
    problem: Problem, shots: Sequence[Problem], length: int, completion: Completion | None
) -> Sample:
    text = "" if completion is None else completion.text or ""
    found = score(text, problem)
    return Sample(
        id=problem.id,
        prompt=prompt(problem, shots),
        completion=text,
        answer=gold_answer(problem),
        strict=found.strict,
        flexible=found.flexible,
        strict_answer=found.strict_answer,
        flexible_answer=found.flexible_answer,
        gates=None if completion is None else completion.gates,
        finish_reason=TOO_LONG if completion is None else completion.finish_reason,
        prompt_tokens=length,
        tokens=0 if completion is None else len(completion.tokens),
    )
