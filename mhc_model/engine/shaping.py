"""What rows do to their logits before a token is drawn: penalties, biases, and what is forbidden.

Each row has its own; a row without gets back its logits as they are. The order is vLLM's: allowed
tokens and biases, the ends that come too early, penalties. What a grammar forbids comes with them
(the order does not matter there). Temperature and truncation follow in `sample`.

The tensors are as wide as the vocabulary, so each is made when the first row needs it.

Axes: r row, v vocabulary, w words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mhc_model.engine.grammar import fill_bits
from mhc_model.engine.request import SamplingParams
from mhc_model.engine.row import Row

WORD = 32


class Shaped(NamedTuple):
    """Which shaping some row asks for; the rest is left out of a step.

    Attributes:
        penalised: presence, frequency or repetition penalties.
        biased: biases, or a list of allowed tokens.
        waits: a least number of tokens before an end.
        constrained: a grammar.
    """

    penalised: bool = False
    biased: bool = False
    waits: bool = False
    constrained: bool = False

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Shaped:
        shaped = [row for row in rows if row.is_shaped]
        if not shaped:
            return cls()
        each = [row.request.sampling for row in shaped]
        return cls(
            penalised=any(p.penalised for p in each),
            biased=any(p.biased for p in each),
            waits=any(p.min_tokens > 0 for p in each),
            constrained=any(row.matcher is not None for row in shaped),
        )


class Shaper:
    """The shaping of every slot of the batch."""

    def __init__(self, size: int, vocabulary: int, device: torch.device) -> None:
        """Nothing to shape.

        Args:
            size: slots.
            vocabulary: of the model.
            device: of its logits.
        """
        self._size, self._vocabulary, self._device = size, vocabulary, device
        self._counts: Tensor | None = None  # (r, v) int32, tokens drawn so far
        self._prompts: Tensor | None = None  # (r, v) bool, tokens of the prompt
        self._penalties: Tensor | None = None  # (r, 3): presence, frequency, repetition
        self._biases: Tensor | None = None  # (r, v)
        self._ends: Tensor | None = None  # (r, v) bool, what ends the row
        self._least: Tensor | None = None  # (r,) int64, tokens before it may
        self._words: Tensor | None = None  # (r, w) int32, bits of allowed tokens
        self._filled: Tensor | None = None  # the same on the CPU, where grammars write it

    def state(self) -> list[Tensor]:
        """What `apply` and `count` change."""
        return [] if self._counts is None else [self._counts]

    def columns(self) -> Iterator[Tensor]:
        """Tensors with a row a slot, as far as there are any."""
        for column in (
            *(self._counts, self._prompts, self._penalties, self._biases),
            *(self._ends, self._least, self._words, self._filled),
        ):
            if column is not None:
                yield column

    def put(self, row: Row, slot: int) -> None:
        """A row takes a slot; what its last owner wanted is forgotten."""
        sampling = row.request.sampling
        self._put_penalties(row, sampling, slot)
        if sampling.biased:
            if self._biases is None:
                self._biases = self._wide(torch.float32)
            allowed = sampling.allowed_token_ids
            self._biases[slot] = 0.0 if allowed is None else -torch.inf
            if allowed is not None:
                self._biases[slot, self._ids(allowed)] = 0.0
            if sampling.logit_bias:
                ids = self._ids(list(sampling.logit_bias))
                values = torch.tensor(list(sampling.logit_bias.values()), device=self._device)
                self._biases[slot, ids] += values
        elif self._biases is not None:
            self._biases[slot] = 0.0
        if sampling.min_tokens:
            if self._ends is None or self._least is None:
                self._ends = self._wide(torch.bool)
                self._least = torch.zeros(self._size, dtype=torch.int64, device=self._device)
            self._ends[slot] = False
            known = [token for token in row.stop_ids if token < self._vocabulary]
            self._ends[slot, self._ids(known)] = True
        if self._least is not None:
            self._least[slot] = sampling.min_tokens
        if row.matcher is not None and self._words is None:
            width = -(-self._vocabulary // WORD)
            self._filled = torch.full((self._size, width), -1, dtype=torch.int32)
            self._words = self._filled.to(self._device, copy=True)
        if self._filled is not None:
            self._filled[slot] = -1

    def constrain(self, rows: Sequence[Row], high: int) -> None:
        """Reads what the grammars of rows allow next, for the first `high` slots."""
        if self._words is None or self._filled is None:
            return
        matchers = [
            (row.matcher, row.slot)
            for row in rows
            if row.matcher is not None and row.slot is not None
        ]
        if matchers:
            fill_bits(matchers, self._filled)
            self._words[:high] = self._filled[:high].to(self._device)

    def apply(self, logits: Tensor, slots: slice | Tensor, drawn: Tensor, shaped: Shaped) -> Tensor:
        """Logits (r, v) as the rows in `slots` want them, which have drawn `drawn` (r,) tokens."""
        if shaped.biased and self._biases is not None:
            logits = logits + self._biases[slots]
        if shaped.waits and self._ends is not None and self._least is not None:
            early = (drawn < self._least[slots])[:, None] & self._ends[slots]
            logits = logits.masked_fill(early, -torch.inf)
        if shaped.penalised:
            logits = self._penalised(logits, slots)
        if shaped.constrained and self._words is not None:
            bits = torch.arange(WORD, dtype=torch.int32, device=logits.device)
            allowed = ((self._words[slots][:, :, None] >> bits) & 1).bool().flatten(1)
            logits = logits.masked_fill(~allowed[:, : logits.shape[1]], -torch.inf)
        return logits

    def count(self, slots: slice | Tensor, tokens: Tensor, live: Tensor) -> None:
        """Notes drawn tokens (r,) of the rows that `live` (r,) has a 1 for."""
        if self._counts is None:
            return
        each = live.to(torch.int32)
        if isinstance(slots, slice):
            self._counts[slots].scatter_add_(1, tokens[:, None], each[:, None])
        else:
            self._counts.index_put_((slots, tokens), each, accumulate=True)

    def _penalised(self, logits: Tensor, slots: slice | Tensor) -> Tensor:
        if self._counts is None or self._prompts is None or self._penalties is None:
            return logits
        presence, frequency, repetition = self._penalties[slots][:, :, None].unbind(dim=1)
        counts = self._counts[slots]
        scale = torch.where((counts > 0) | self._prompts[slots], repetition, 1.0)
        logits = torch.where(logits > 0, logits / scale, logits * scale)
        return logits - frequency * counts - presence * (counts > 0)

    def _put_penalties(self, row: Row, sampling: SamplingParams, slot: int) -> None:
        if sampling.penalised and self._counts is None:
            self._counts = self._wide(torch.int32)
            self._prompts = self._wide(torch.bool)
            self._penalties = torch.zeros(self._size, 3, device=self._device)
            self._penalties[:, 2] = 1.0
        if self._counts is None or self._prompts is None or self._penalties is None:
            return
        self._counts[slot] = 0
        self._prompts[slot] = False
        if sampling.repetition_penalty != 1.0:
            self._prompts[slot, self._ids(row.prompt)] = True
        values = (sampling.presence_penalty, sampling.frequency_penalty)
        self._penalties[slot] = torch.tensor((*values, sampling.repetition_penalty))

    def _wide(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self._size, self._vocabulary, dtype=dtype, device=self._device)

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(list(tokens), dtype=torch.int64, device=self._device)
