"""GSM8K as lm-evaluation-harness defines it, and as a plan.

It follows the harness's task `gsm8k`, version 3 (lm_eval/tasks/gsm8k/gsm8k.yaml): zero-shot or
few-shot prompts, a strict and a flexible extraction, exact match after light normalisation. The
built-in problems have the same format, so they are the same task.

Prompts, extraction and scores are pure functions of their arguments, shared by training, evaluation
and RL. The plan asks for one greedy answer a problem and scores it by both extractions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import Tensor

from evals.problems import Problem, with_words
from evals.settings import MAX_TOKENS
from evals.statistics import accuracy_entry
from evals.tasks.plan import Item, Plan, Sample, check_ids, fingerprint, gate_rows, tokenizer_of
from mhc_model.engine import Completion, Engine, Request, SamplingParams
from mhc_model.errors import EngineError
from mhc_model.gates import RequestGates
from mhc_model.tokenizer import Tokenizer

# Results compare only where these agree; raise them with any change of the text or the rules.
PROMPT_VERSION = "gsm8k-qa-1"
EXTRACTION_VERSION = "gsm8k-harness-3"

# The harness's `until`: a model that goes on would start the next question.
STOP_STRINGS = ("Question:", "</s>", "<|im_end|>")
INVALID = "[invalid]"
EXTRACTIONS = ("strict", "flexible")
TOO_LONG = "too_long"  # finish reason of a prompt that leaves no room for a single token

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_SHOT_DELIMITER = "\n\n"
# `regexes_to_ignore` of the harness, in its order: removed from the prediction and the reference.
_IGNORED = tuple(re.compile(p) for p in (r",", r"\$", r"(?s).*#### ", r"\.$"))


class Extracted(NamedTuple):
    """Answers found in a completion, as written there; `INVALID` where there is none."""

    strict: str
    flexible: str


class Score(NamedTuple):
    """Whether each extraction equals the problem's answer, and what was extracted."""

    strict: bool
    flexible: bool
    strict_answer: str
    flexible_answer: str


def prompt(problem: Problem, shots: Sequence[Problem] = ()) -> str:
    """What the model continues: the shots as documents, then the question and `Answer:`.

    A completion starts with the space that separates `Answer:` from the answer.
    """
    parts = [document(shot) for shot in shots]
    return _SHOT_DELIMITER.join([*parts, f"Question: {problem.question}\nAnswer:"])


def document(problem: Problem) -> str:
    """The text a model is trained on: the zero-shot prompt and the answer after one space."""
    return f"{prompt(problem)} {problem.answer}"


def extract(text: str) -> Extracted:
    """Finds the answer in a completion.

    Strict: the number after the first `#### `. Flexible: the last thing that looks like a number.
    """
    strict = _STRICT.search(text)
    flexible = _FLEXIBLE.findall(text)
    return Extracted(
        strict.group(1) if strict else INVALID,
        next(group for group in flexible[-1] if group) if flexible else INVALID,
    )


def score(text: str, problem: Problem) -> Score:
    """Compares a completion with the problem's answer: exact match after normalisation."""
    found = extract(text)
    gold = gold_answer(problem)
    return Score(
        _normalise(found.strict) == gold,
        _normalise(found.flexible) == gold,
        found.strict,
        found.flexible,
    )


def gold_answer(problem: Problem) -> str:
    """The final number of the problem's answer, without commas and dollar signs."""
    return _normalise(problem.answer)


def _normalise(answer: str) -> str:
    for pattern in _IGNORED:
        answer = pattern.sub("", answer)
    return answer.lower()


@dataclass(frozen=True)
class GSM8KSample:
    """One problem's sample; results of two runs are paired by `id`.

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
        answer_gates: the answer's, where the prompt was read under others (`gates`).
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
    answer_gates: tuple[float, ...] | None = None


def prompt_tokens(
    tokenizer: Tokenizer, problem: Problem, shots: Sequence[Problem] = (), bos: bool = True
) -> list[int]:
    """The prompt as the model was trained to see it: after the document separator."""
    return tokenizer.encode(prompt(problem, shots), bos=bos)


def gsm8k_plan(
    task: str,
    engine: Engine,
    problems: Sequence[Problem],
    gates: RequestGates = None,
    shots: Sequence[Problem] = (),
    max_tokens: int = MAX_TOKENS,
    bos: bool = True,
    words: str | None = None,
) -> Plan:
    """Greedy answers to these problems; samples are `GSM8KSample`s.

    Args:
        task: its name in the results.
        engine: whose tokenizer and context are used.
        problems: at least one, ids unique.
        gates: what `resolve_gates` takes (the same for all), or a (n_problems, 2L) tensor, one row
            a problem, or a (n_problems, 2, 2L) one of prompt and answer.
        shots: worked examples put before every question.
        max_tokens: of an answer. Where prompt and answer exceed the context, the answer's limit is
            cut to what is left; a prompt that leaves nothing counts as wrong. Both are counted.
        bos: put the document separator before every prompt.
        words: stand in brackets after every question, also of the shots. Facts then have
            `problems_sha256`, too, which is `prompts_sha256` without the words.

    Raises:
        DataError: without problems, or with the same id twice.
        GateError: if the gates do not fit the problems or the model.
        EngineError: if the engine has no tokenizer, or max_tokens is below 1.
    """
    check_ids([problem.id for problem in problems])
    if max_tokens < 1:
        raise EngineError(f"max_tokens is {max_tokens}; it must be at least 1")
    tokenizer = tokenizer_of(engine)
    about_words = {}
    if words is not None:
        about_words = {"words": words, "problems_sha256": _fingerprint(problems, shots)}
        problems = [with_words(problem, words) for problem in problems]
        shots = [with_words(shot, words) for shot in shots]
    rows = gate_rows(gates, len(problems), engine.model)
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
        "prompts_sha256": _fingerprint(problems, shots),
        "max_tokens": max_tokens,
        "max_tokens_cut": cut,
        **about_words,
    }
    return Plan(task, engine, items, facts, summarise)


def _fingerprint(problems: Sequence[Problem], shots: Sequence[Problem]) -> str:
    return fingerprint(
        (problem.id, prompt(problem, shots), gold_answer(problem)) for problem in problems
    )


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Scores of all samples."""
    tokens = sum(sample["tokens"] for sample in samples)
    return {
        **{
            name: accuracy_entry(sum(sample[name] for sample in samples), len(samples))
            for name in EXTRACTIONS
        },
        "too_long": sum(sample["finish_reason"] == TOO_LONG for sample in samples),
        "generated_tokens": tokens,
        "mean_tokens": tokens / len(samples),
    }


def _item(
    problem: Problem, shots: Sequence[Problem], tokens: list[int], gates: Tensor | None, limit: int
) -> Item:
    requests: tuple[Request, ...] = ()
    if limit >= 1:
        sampling = SamplingParams(max_tokens=limit, stop=STOP_STRINGS)
        requests = (Request(tokens, gates, sampling, problem.id),)

    def finish(completions: Sequence[Completion]) -> Sample:
        done = completions[0] if completions else None
        return asdict(_sample(problem, shots, len(tokens), done))

    return Item(problem.id, requests, finish)


def _sample(
    problem: Problem, shots: Sequence[Problem], length: int, completion: Completion | None
) -> GSM8KSample:
    text = "" if completion is None else completion.text or ""
    found = score(text, problem)
    return GSM8KSample(
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
        answer_gates=None if completion is None else completion.answer_gates,
    )
