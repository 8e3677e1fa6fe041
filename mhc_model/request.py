"""What goes into the engine and what comes out, and the state of a request on its way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

from torch import Tensor

from mhc_model.errors import EngineError
from mhc_model.gates import GateValues
from mhc_model.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]

_ids = itertools.count()


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn and when to stop.

    Attributes:
        max_tokens: most tokens to generate, at least 1.
        temperature: >= 0; 0 is greedy.
        top_p: in (0, 1]; see `mhc_model.sampling.sample`.
        top_k: >= 0; 0 keeps all tokens.
        seed: any 63-bit non-negative integer; the same request and seed give the same tokens.
        stop: strings at which the completion ends; they are not part of it.
        stop_token_ids: token ids at which it ends, besides the tokenizer's end-of-document token.
        logprobs: keep each generated token's log-probability (of the model: before temperature
            and truncation).
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise EngineError(f"stop is {self.stop!r}; it must be a tuple of non-empty strings")
        for names, kind, words in (
            (("max_tokens", "top_k", "seed"), Integral, "a whole number"),
            (("temperature", "top_p"), Real, "a number"),
        ):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise EngineError(f"{name} is {value!r}; it must be {words}")
        limits = (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "finite and at least 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0 (0 keeps all tokens)"),
            ("seed", 0 <= self.seed < 1 << 63, "at least 0 and below 2**63"),
        )
        for name, allowed, limit in limits:
            if not allowed:
                raise EngineError(f"{name} is {getattr(self, name)}; it must be {limit}")


@dataclass(frozen=True)
class Request:
    """One prompt with its own gates and sampling.

    Attributes:
        prompt: token ids, not empty.
        gates: what `expand_gates` takes, or None for the learned gates.
        sampling: see `SamplingParams`.
        id: unique among the requests under way; made up if not given.
    """

    prompt: Sequence[int]
    gates: GateValues | None = None
    sampling: SamplingParams = SamplingParams()
    id: str = field(default_factory=lambda: f"request-{next(_ids)}")


@dataclass(frozen=True)
class Timings:
    """Seconds since the request was added."""

    queued_s: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class Completion:
    """What the engine made of a request.

    Attributes:
        request_id: the request's id.
        tokens: generated ids, without the token or string that ended them.
        text: the same as text (cut exactly before a stop string); None without a tokenizer.
        finish_reason: "stop" (end of document, stop id or string), "length" or "cancelled".
        logprobs: one float a token where asked for.
        gates: the 2L gates that were used; None for a plain model.
        timings: see `Timings`.
    """

    request_id: str
    tokens: tuple[int, ...]
    text: str | None
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None
    gates: tuple[float, ...] | None
    timings: Timings


class Row:
    """A request under way: its gates, what it has generated, and where its text ends."""

    def __init__(self, request: Request, gates: Tensor | None, stop_ids: frozenset[int]) -> None:
        self.request = request
        self.gates = gates
        self.stop_ids = stop_ids
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.added = time.perf_counter()
        self.started: float | None = None
        self.first_token: float | None = None
        self._bytes = bytearray()  # of all tokens, kept only where there are stop strings
        self._ends: list[int] = []  # length of _bytes after each token
        self._cut: int | None = None  # where the first stop string begins in _bytes
        self._stopped_by_id = False

    def append(self, token: int, logprob: float, now: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.first_token is None:
            self.first_token = now

    def finish_reason(self, tokenizer: Tokenizer | None) -> FinishReason | None:
        """Looks at the newest token only; None if the row goes on."""
        if self.tokens[-1] in self.stop_ids:
            self._stopped_by_id = True
            return "stop"
        if self.request.sampling.stop and tokenizer is not None and self._meets_stop(tokenizer):
            return "stop"
        if len(self.tokens) >= self.request.sampling.max_tokens:
            return "length"
        return None

    def _meets_stop(self, tokenizer: Tokenizer) -> bool:
        new = tokenizer.token_bytes(self.tokens[-1])
        searched = len(self._bytes)
        self._bytes += new
        self._ends.append(len(self._bytes))
        stops = [stop.encode() for stop in self.request.sampling.stop]
        # A new match ends inside the new bytes, so it begins at most its length before them.
        found = [self._bytes.find(stop, max(0, searched - len(stop) + 1)) for stop in stops]
        starts = [start for start in found if start >= 0]
        if starts:
            self._cut = min(starts)
        return bool(starts)

    def output(self, tokenizer: Tokenizer | None) -> tuple[tuple[int, ...], str | None]:
        """Tokens and text before whatever ended the row."""
        if self._cut is not None:
            whole = sum(end <= self._cut for end in self._ends)
            text = bytes(self._bytes[: self._cut]).decode("utf-8", errors="replace")
            return tuple(self.tokens[:whole]), text
        tokens = tuple(self.tokens[:-1] if self._stopped_by_id else self.tokens)
        return tokens, None if tokenizer is None else tokenizer.decode(list(tokens))
