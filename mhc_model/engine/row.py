"""One sample of a request on its way through the engine."""

from __future__ import annotations

import codecs
import time
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from mhc_model.engine.grammar import Matcher
from mhc_model.engine.request import (
    Alternatives,
    Completion,
    Delta,
    FinishReason,
    PromptLogprobs,
    Request,
    Timings,
)
from mhc_model.tokenizer import Tokenizer

# Seeds of the samples of a request: steps of the golden ratio of 2**63, so that requests with
# neighbouring seeds share none.
_SEED_STEP = 0x4F1BBCDCBFA53E0B


class GeneratedText:
    """The bytes of generated tokens, and how much of them is certain to stay.

    Not certain is the beginning of a character whose other bytes have not come, and what may turn
    out to be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.cut: int | None = None  # where the first stop string begins
        self.ends: list[int] = []  # length of the bytes after each token
        self._stops = [stop.encode() for stop in stops]
        self._bytes = bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoded = 0  # bytes that the decoder has been given

    def push(self, token: bytes, may_stop: bool = True) -> bool:
        """Takes the bytes of the next token; whether a stop string is complete with it."""
        searched = len(self._bytes)
        self._bytes += token
        self.ends.append(len(self._bytes))
        if not may_stop:
            return False
        # A new match ends inside the new bytes, so it begins at most its length before them.
        found = [self._bytes.find(stop, max(0, searched - len(stop) + 1)) for stop in self._stops]
        starts = [start for start in found if start >= 0]
        if starts:
            self.cut = min(starts)
        return bool(starts)

    def take(self, final: bool) -> tuple[str, int]:
        """Text that has become certain since the last call, and the number of all whole tokens.

        Args:
            final: nothing comes after it: the rest is certain up to the stop string.
        """
        end = len(self._bytes) if self.cut is None else self.cut
        if not final:
            end -= self._possible_stop()
        text = self._decoder.decode(bytes(self._bytes[self._decoded : end]), final)
        self._decoded = end
        certain = end - len(self._decoder.getstate()[0])
        return text, self.whole_tokens(certain)

    def whole_tokens(self, size: int) -> int:
        """How many tokens lie within the first `size` bytes."""
        return bisect_right(self.ends, size)

    def _possible_stop(self) -> int:
        """Length of the longest end of the bytes that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._bytes)), longest, -1):
                if self._bytes.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def text(self) -> str:
        """Everything up to the stop string."""
        return bytes(self._bytes[: self.cut]).decode("utf-8", errors="replace")


class Row:
    """A sample under way: its gates, what is in the cache, what it has generated.

    Attributes:
        gates: (2L,) float32 on the CPU, or None for a plain model: those of the prompt.
        answer_gates: likewise, those of the answer.
        stop_ids: token ids that end it.
        blocks: names of the prompt's whole blocks in the prefix cache.
        slot: row of the cache and of the batch; None while it waits.
        matcher: follows the form of its answer; None for any.
        is_shaped: it wants other logits than the model's.
        filled: tokens of the prompt whose keys and values are in the cache.
        cached: those of them that came from the prefix cache.
    """

    def __init__(
        self,
        request: Request,
        index: int,
        gates: Tensor | None,
        stop_ids: frozenset[int],
        answer_gates: Tensor | None = None,
        matcher: Matcher | None = None,
    ) -> None:
        sampling = request.sampling
        self.request = request
        self.index = index
        self.gates = gates
        self.answer_gates = gates if answer_gates is None else answer_gates
        self.stop_ids = stop_ids
        self.matcher = matcher
        self.is_shaped = matcher is not None or sampling.min_tokens > 0
        self.is_shaped = self.is_shaped or sampling.penalised or sampling.biased
        self.seed = (sampling.seed + index * _SEED_STEP) & ((1 << 63) - 1)
        self.prompt = list(request.prompt)
        self.blocks: list[bytes] = []
        self.slot: int | None = None
        self.filled = 0
        self.cached = 0
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[Alternatives] = []
        self.prompt_logprobs: list[float | None] = []
        self.prompt_top: list[Alternatives] = []
        self.prompt_ranks: list[int | None] = []
        if sampling.prompt_logprobs_from == 0:  # nothing precedes the first token
            self.prompt_logprobs.append(None)
            self.prompt_top.append(())
            self.prompt_ranks.append(None)
        self.added = time.perf_counter()
        self.started: float | None = None
        self.first_token: float | None = None
        self._text = GeneratedText(sampling.stop) if sampling.stop or request.stream else None
        self._shown = 0  # tokens given in deltas
        self._prompt_shown = sampling.prompt_logprobs_from is None
        self._drops_last = False

    @property
    def need(self) -> int:
        """Positions of the cache that it may come to fill."""
        return len(self.prompt) + self.request.sampling.places

    @property
    def length(self) -> int:
        """Positions of the cache that it fills; the newest token is not yet in there."""
        return self.filled + max(0, len(self.tokens) - 1)

    @property
    def prefilling(self) -> bool:
        return self.filled < len(self.prompt)

    def append(self, token: int, now: float) -> None:
        self.tokens.append(token)
        if self.matcher is not None:
            self.matcher.take(token)
        if self.first_token is None:
            self.first_token = now

    def finish_reason(self, tokenizer: Tokenizer | None) -> FinishReason | None:
        """Looks at the newest token only, once for each; None if the row goes on."""
        if not self.tokens:
            return "length" if self.request.sampling.max_tokens == 0 else None
        token = self.tokens[-1]
        if self.matcher is not None and self.matcher.failed:
            self._drops_last = True  # nothing said whether it belongs there
            return "length"
        if token in self.stop_ids:
            self._drops_last = True
            return "stop"
        if tokenizer is not None and self._text is not None:
            may_stop = len(self.tokens) > self.request.sampling.min_tokens
            if self._text.push(tokenizer.token_bytes(token), may_stop):
                return "stop"
        if self.matcher is not None and self.matcher.over:
            return "stop"
        if len(self.tokens) >= self.request.sampling.max_tokens:
            return "length"
        return None

    def take_delta(self, final: bool) -> Delta | None:
        """What has become certain since the last call; None if that is nothing."""
        text, whole = "", self._kept
        if self._text is not None and self._text.ends:
            text, whole = self._text.take(final)
        first, self._shown = self._shown, max(self._shown, whole)
        prompt = None if self._prompt_shown else self._prompt_logprobs()
        if not text and self._shown == first and prompt is None:
            return None
        self._prompt_shown = True
        sampling, shown = self.request.sampling, slice(first, self._shown)
        return Delta(
            request_id=self.request.id,
            index=self.index,
            text=text,
            tokens=tuple(self.tokens[shown]),
            logprobs=tuple(self.logprobs[shown]) if sampling.logprobs else None,
            top_logprobs=tuple(self.top_logprobs[shown]) if self._keeps_top else None,
            prompt=prompt,
        )

    def complete(self, reason: FinishReason, tokenizer: Tokenizer | None) -> Completion:
        tokens, now = self.tokens[: self._kept], time.perf_counter()
        text = None if tokenizer is None else tokenizer.decode(tokens)
        if self._text is not None and self._text.cut is not None:
            text = self._text.text()
        sampling = self.request.sampling
        return Completion(
            request_id=self.request.id,
            index=self.index,
            tokens=tuple(tokens),
            text=text,
            finish_reason=reason,
            logprobs=tuple(self.logprobs[: len(tokens)]) if sampling.logprobs else None,
            top_logprobs=tuple(self.top_logprobs[: len(tokens)]) if self._keeps_top else None,
            prompt_logprobs=self._prompt_logprobs(),
            gates=None if self.gates is None else tuple(self.gates.tolist()),
            answer_gates=self._other_answer_gates(),
            cached_tokens=self.cached,
            timings=Timings(
                queued_s=(self.started or now) - self.added,
                first_token_s=(self.first_token or now) - self.added,
                total_s=now - self.added,
            ),
        )

    @property
    def changes_gates(self) -> bool:
        """Whether the answer has other gates than the prompt."""
        if self.gates is None or self.answer_gates is None or self.answer_gates is self.gates:
            return False
        return not torch.equal(self.gates, self.answer_gates)

    def _other_answer_gates(self) -> tuple[float, ...] | None:
        if self.answer_gates is None or not self.changes_gates:
            return None
        return tuple(self.answer_gates.tolist())

    @property
    def _keeps_top(self) -> bool:
        return self.request.sampling.logprobs and self.request.sampling.top_logprobs > 0

    @property
    def _kept(self) -> int:
        """Number of generated tokens before whatever ended the row."""
        if self._text is not None and self._text.cut is not None:
            return self._text.whole_tokens(self._text.cut)
        return len(self.tokens) - self._drops_last

    def _prompt_logprobs(self) -> PromptLogprobs | None:
        if self.request.sampling.prompt_logprobs_from is None:
            return None
        top = self.prompt_top if self.request.sampling.top_logprobs else ()
        ranks = self.prompt_ranks if self.request.sampling.prompt_ranks else ()
        return PromptLogprobs(tuple(self.prompt_logprobs), tuple(top), tuple(ranks))
