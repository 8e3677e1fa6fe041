"""The state of a request on its way through the engine."""

from __future__ import annotations

import time

from torch import Tensor

from mhc_model.request import FinishReason, Request
from mhc_model.tokenizer import Tokenizer


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
