"""Runs the GSM8K task on an engine and keeps every sample."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from evals.gate_rows import gate_rows
from evals.problem import Problem
from evals.statistics import Interval, standard_error, wilson_interval
from evals.tasks import STOP_STRINGS, gold_answer, prompt, score
from mhc_model.engine import Engine
from mhc_model.errors import DataError, EngineError
from mhc_model.gates import GateValues
from mhc_model.request import Completion, Request, SamplingParams
from mhc_model.tokenizer import Tokenizer

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


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers and how sure it is."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        return self.correct / self.n

    @property
    def stderr(self) -> float:
        return standard_error(self.correct, self.n)

    @property
    def wilson_95(self) -> Interval:
        return wilson_interval(self.correct, self.n)


@dataclass(frozen=True)
class GSM8KResult:
    """What `evaluate_gsm8k` found.

    Attributes:
        samples: one a problem, in the order of the problems.
        n_shot: worked examples in each prompt.
        max_tokens: the limit that was asked for.
        cut: problems whose limit was cut to what the context leaves.
        prompts_sha256: of all ids, prompts and right answers: equal for comparable runs.
        seconds: from the first request to the last completion.
    """

    samples: list[Sample]
    n_shot: int
    max_tokens: int
    cut: int
    prompts_sha256: str
    seconds: float

    @property
    def strict(self) -> Accuracy:
        return Accuracy(sum(sample.strict for sample in self.samples), len(self.samples))

    @property
    def flexible(self) -> Accuracy:
        return Accuracy(sum(sample.flexible for sample in self.samples), len(self.samples))

    @property
    def too_long(self) -> int:
        """Problems whose prompt did not fit; they count as wrong."""
        return sum(sample.finish_reason == TOO_LONG for sample in self.samples)

    @property
    def tokens(self) -> int:
        """Generated tokens of all samples."""
        return sum(sample.tokens for sample in self.samples)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def prompt_tokens(
    tokenizer: Tokenizer, problem: Problem, shots: Sequence[Problem] = ()
) -> list[int]:
    """The prompt as the model was trained to see it: after the document separator."""
    return tokenizer.encode(prompt(problem, shots), bos=True)


def evaluate_gsm8k(
    engine: Engine,
    problems: Sequence[Problem],
    gates: GateValues | None = None,
    shots: Sequence[Problem] = (),
    max_tokens: int = MAX_TOKENS,
    progress: bool = False,
) -> GSM8KResult:
    """Answers problems greedily and scores them.

    Args:
        engine: idle, with a tokenizer.
        problems: at least one, ids unique.
        gates: None (learned), whatever `expand_gates` takes (the same for all), or a
            (n_problems, 2L) tensor, one row a problem.
        shots: worked examples put before every question.
        max_tokens: of an answer. Where prompt and answer exceed the context, the answer's limit is
            cut to what is left; a prompt that leaves nothing counts as wrong. Both are counted.
        progress: show a progress bar, if standard error is a terminal.

    Raises:
        DataError: without problems, or with the same id twice.
        GateError: if the gates do not fit the problems or the model.
        EngineError: if the engine is busy, has no tokenizer, or max_tokens is below 1.
    """
    if len({problem.id for problem in problems}) != len(problems) or not problems:
        raise DataError(f"{len(problems)} problems: there must be some, with different ids")
    if engine.has_work or engine.tokenizer is None:
        raise EngineError("evaluation needs an idle engine that has a tokenizer")
    rows = gate_rows(gates, len(problems), engine.model.config)
    prompts = [prompt_tokens(engine.tokenizer, problem, shots) for problem in problems]
    requests: list[Request] = []
    cut = 0
    for position, tokens in enumerate(prompts):
        room = engine.max_seq_len - len(tokens)
        if room < 1:
            continue
        cut += room < max_tokens
        sampling = SamplingParams(max_tokens=min(max_tokens, room), stop=STOP_STRINGS)
        own = None if rows is None else rows[position]
        requests.append(Request(tokens, own, sampling, problems[position].id))
    started = time.perf_counter()
    done = _generate(engine, requests, progress)
    seconds = time.perf_counter() - started
    samples = [
        _sample(problem, shots, len(tokens), done.get(problem.id))
        for problem, tokens in zip(problems, prompts, strict=True)
    ]
    return GSM8KResult(samples, len(shots), max_tokens, cut, _fingerprint(samples), seconds)


def _generate(engine: Engine, requests: Sequence[Request], progress: bool) -> dict[str, Completion]:
    for request in requests:
        engine.add(request)
    done: dict[str, Completion] = {}
    # disable=None shows the bar in a terminal only: a log gets no thousand lines.
    hidden = None if progress else True
    with tqdm(total=len(requests), desc="gsm8k", unit="problem", disable=hidden) as bar:
        while engine.has_work:
            finished = engine.step()
            done.update((completion.request_id, completion) for completion in finished)
            bar.update(len(finished))
    return done


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


def _fingerprint(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for part in (sample.id, sample.prompt, sample.answer):
            digest.update(part.encode() + b"\0")
    return digest.hexdigest()
