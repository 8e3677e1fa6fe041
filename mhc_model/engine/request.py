"""What goes into the engine and what comes out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

from mhc_model.config import MAX_TOP_LOGPROBS
from mhc_model.engine.grammar import Structure
from mhc_model.errors import EngineError
from mhc_model.gates import RequestGates

FinishReason = Literal["stop", "length", "cancelled"]

Alternatives = tuple[tuple[int, float], ...]
"""The likeliest tokens of one position, each with its log-probability, likeliest first."""

_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")
_ids = itertools.count()


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn and when to stop.

    Attributes:
        max_tokens: most tokens to generate, at least 1; 0 is allowed with `prompt_logprobs_from`.
        temperature: >= 0; 0 is greedy.
        top_p: in (0, 1]; see `mhc_model.engine.sampling.sample`.
        top_k: >= 0; 0 keeps all tokens.
        min_p: in [0, 1]; tokens whose probability is below this share of the likeliest one's are
            left out. 0 keeps all.
        presence_penalty: in [-2, 2]; taken from the logits of tokens that were generated.
        frequency_penalty: in [-2, 2]; taken from them for each time.
        repetition_penalty: in [0.01, 100]; logits of tokens of the prompt and of generated ones are
            divided by it where positive, else multiplied. 1 changes nothing.
        logit_bias: token id -> number in [-100, 100] added to its logit.
        allowed_token_ids: none but these are drawn; None: all may be.
        min_tokens: tokens before the document's end or a stop id can be drawn or a stop string end
            the completion; at most max_tokens.
        structure: the form that the text must have; None: any.
        seed: any 63-bit non-negative integer; the same request and seed give the same tokens.
        stop: strings at which the completion ends; they are not part of it.
        stop_token_ids: token ids at which it ends, besides the tokenizer's end-of-document token.
        ignore_eos: the end-of-document token does not end it.
        logprobs: keep each generated token's log-probability (of the model: before temperature
            and truncation).
        top_logprobs: 0 to 20 likeliest tokens kept for every position that has a log-probability;
            they need `logprobs` or `prompt_logprobs_from`.
        prompt_logprobs_from: position in the prompt from which its tokens' log-probabilities are
            kept; 0 keeps all, None none. What lies before it may come from the prefix cache.
        prompt_ranks: keep their ranks among all tokens too.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs_from: int | None = None
    prompt_ranks: bool = False
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    min_tokens: int = 0
    structure: Structure | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise EngineError(f"stop is {self.stop!r}; it must be a tuple of non-empty strings")
        scores_prompt = self.prompt_logprobs_from is not None
        whole = ["max_tokens", "top_k", "seed", "top_logprobs", "min_tokens"]
        whole += ["prompt_logprobs_from"] if scores_prompt else []
        for names, kind, words in (
            (whole, Integral, "a whole number"),
            (["temperature", "top_p", "min_p", *_PENALTIES], Real, "a number"),
        ):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise EngineError(f"{name} is {value!r}; it must be {words}")
        least = 0 if scores_prompt else 1
        limits = (
            ("max_tokens", self.max_tokens >= least, f"at least {least}"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "finite and at least 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0 (0 keeps all tokens)"),
            ("seed", 0 <= self.seed < 1 << 63, "at least 0 and below 2**63"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "0 to 1"),
            ("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "-2 to 2"),
            ("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "-2 to 2"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100.0, "0.01 to 100"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "0 to max_tokens"),
            ("top_logprobs", 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS, "0 to 20"),
            ("prompt_logprobs_from", (self.prompt_logprobs_from or 0) >= 0, "at least 0"),
        )
        for name, allowed, limit in limits:
            if not allowed:
                raise EngineError(f"{name} is {getattr(self, name)}; it must be {limit}")
        if self.top_logprobs and not (self.logprobs or scores_prompt):
            raise EngineError(
                f"top_logprobs is {self.top_logprobs}; it needs logprobs or prompt_logprobs_from"
            )
        for token, bias in (self.logit_bias or {}).items():
            if not isinstance(bias, Real) or not -100.0 <= bias <= 100.0:
                raise EngineError(
                    f"logit_bias of token {token} is {bias!r}; it must be -100 to 100"
                )
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise EngineError(
                "allowed_token_ids are empty: no token could be drawn; leave them out"
            )
        if self.structure is not None and self.allowed_token_ids is not None:
            raise EngineError(
                "allowed_token_ids and a form of the answer may leave no token to draw; give one"
            )

    @property
    def penalised(self) -> bool:
        """Whether there is a presence, frequency or repetition penalty."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties != (0.0, 0.0, 1.0)

    @property
    def biased(self) -> bool:
        """Whether some tokens are favoured, or none but some allowed."""
        return bool(self.logit_bias) or self.allowed_token_ids is not None

    @property
    def places(self) -> int:
        """Places of the context that an answer may take.

        The last token of an answer is never fed, yet it has its place, as in other engines. Only
        the one token after a prompt that is scored has none: the prompt may fill the context.
        """
        scores = self.prompt_logprobs_from is not None
        return 0 if scores and self.max_tokens == 1 else self.max_tokens


@dataclass(frozen=True)
class Request:
    """One prompt with its own gates and sampling.

    Attributes:
        prompt: token ids, not empty.
        gates: what `resolve_gates` takes: None for the learned gates, numbers, the name of a
            behaviour, or both for prompt and answer apart.
        sampling: see `SamplingParams`.
        id: unique among the requests under way; made up if not given.
        n: completions wanted, 1 to 128. They share the prompt's prefill; sample 0 is what the
            request gives with n = 1, the others draw from seeds derived from its seed.
        stream: what is generated also comes step by step, from `Engine.take_deltas`.
    """

    prompt: Sequence[int]
    gates: RequestGates = None
    sampling: SamplingParams = SamplingParams()
    id: str = field(default_factory=lambda: f"request-{next(_ids)}")
    n: int = 1
    stream: bool = False


@dataclass(frozen=True)
class Timings:
    """Seconds since the request was added."""

    queued_s: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class PromptLogprobs:
    """Log-probabilities of a prompt's own tokens, from `prompt_logprobs_from` on.

    Attributes:
        logprobs: one a token; None for the prompt's first token, which nothing precedes.
        top: the likeliest tokens at each of these positions, where asked for; else empty.
        ranks: how many tokens are at least as likely as each one, itself included, where asked
            for; else empty.
    """

    logprobs: tuple[float | None, ...]
    top: tuple[Alternatives, ...]
    ranks: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Delta:
    """What one sample of a streamed request gained in one step.

    The texts of all deltas of a sample joined are the text of its `Completion`, and so are the
    tokens. Text comes only when it is certain: not half a character, nor what may become a stop
    string; a token may therefore come in an earlier or later delta than its text, and a delta may
    have an empty text.

    Attributes:
        request_id: the request's id.
        index: of the sample, 0 to n - 1.
        text: what is certain now; empty without a tokenizer.
        tokens: ids whose whole text is certain now.
        logprobs: one a token of `tokens`, where asked for.
        top_logprobs: the likeliest tokens at each, where asked for.
        prompt: in the sample's first delta, where asked for; also where no token follows.
    """

    request_id: str
    index: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[Alternatives, ...] | None
    prompt: PromptLogprobs | None


@dataclass(frozen=True)
class Completion:
    """What the engine made of one sample of a request.

    Attributes:
        request_id: the request's id.
        index: of the sample, 0 to n - 1.
        tokens: generated ids, without the token or string that ended them.
        text: the same as text (cut exactly before a stop string); None without a tokenizer.
        finish_reason: "stop" (end of document, stop id or string), "length" or "cancelled".
        logprobs: one float a token where asked for.
        top_logprobs: the likeliest tokens at each, where asked for.
        prompt_logprobs: those of the prompt, where asked for.
        gates: the 2L gates that were used; None for a plain model.
        answer_gates: those of the answer, where the prompt was read under others (`gates`).
        cached_tokens: tokens of the prompt whose keys and values did not have to be computed.
        timings: see `Timings`.
    """

    request_id: str
    index: int
    tokens: tuple[int, ...]
    text: str | None
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[Alternatives, ...] | None
    prompt_logprobs: PromptLogprobs | None
    gates: tuple[float, ...] | None
    cached_tokens: int
    timings: Timings
    answer_gates: tuple[float, ...] | None = None


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing and has done.

    Attributes:
        waiting: samples without a row.
        prefilling: rows whose prompt is not yet read to its end.
        decoding: rows that generate.
        kv_tokens: positions of the cache that hold a token.
        kv_capacity: positions of the cache.
        prefix_cache_bytes: bytes that the prefix cache holds.
        steps: calls of `step` that had work.
        prompt_tokens: prompt tokens of all requests that have got a row.
        cached_tokens: those of them whose keys and values were there already.
        generated_tokens: tokens drawn.
        finished: samples that ended by themselves.
        cancelled: samples that were cancelled.
    """

    waiting: int = 0
    prefilling: int = 0
    decoding: int = 0
    kv_tokens: int = 0
    kv_capacity: int = 0
    prefix_cache_bytes: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
