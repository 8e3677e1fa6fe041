"""The running batch: which request has which row of the cache, and what a step needs of each.

Everything that a decoding step reads lies in tensors on the model's device, one row a slot, and the
step itself keeps them up to date: no Python work goes into a slot between joining and leaving.

Axes: r slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mhc_model.engine.row import Row
from mhc_model.engine.sampling import sample
from mhc_model.engine.shaping import Shaped, Shaper


class Wanted(NamedTuple):
    """What some row of the batch asks for; what nobody does is left out of a step."""

    sampled: bool
    truncated: bool
    logprobs: bool
    top_logprobs: int
    shaped: Shaped = Shaped()


class Batch:
    """Slots 0 .. size - 1, of which some are empty; the tensors have a row for each."""

    def __init__(self, size: int, n_gates: int, device: torch.device, vocabulary: int = 0) -> None:
        """All slots empty; a vocabulary is for rows that shape their logits."""

        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.rows: list[Row | None] = [None] * size
        self.tokens = column(torch.int64)  # drawn last, to be fed next
        self.live = column(torch.int64)  # 1 where a row decodes
        self.gates = torch.zeros(size, n_gates, device=device) if n_gates else None
        self.temperature = column(torch.float32)
        self.top_p = column(torch.float32)
        self.top_k = column(torch.int64)
        self.min_p = column(torch.float32)
        self.seed = column(torch.int64)
        self.drawn = column(torch.int64)  # tokens drawn so far
        self.shaper = Shaper(size, vocabulary, device)

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def high(self) -> int:
        """Number of slots up to the last one that is taken."""
        return max((slot + 1 for slot, row in enumerate(self.rows) if row is not None), default=0)

    @property
    def taken(self) -> list[Row]:
        return [row for row in self.rows if row is not None]

    def free_slot(self) -> int:
        """The first empty slot; `size` if there is none."""
        empty = (slot for slot, row in enumerate(self.rows) if row is None)
        return next(empty, self.size)

    def put(self, row: Row, slot: int) -> None:
        sampling = row.request.sampling
        self.rows[slot], row.slot = row, slot
        if self.gates is not None and row.gates is not None:
            self.gates[slot] = row.gates.to(self.gates.device)
        self.temperature[slot] = sampling.temperature
        self.top_p[slot] = sampling.top_p
        self.top_k[slot] = sampling.top_k
        self.min_p[slot] = sampling.min_p
        self.shaper.put(row, slot)
        self.seed[slot] = row.seed
        self.drawn[slot] = 0
        self.live[slot] = 0

    def answer(self, row: Row) -> None:
        """The prompt is read: from here on the row has the gates of its answer."""
        if row.changes_gates and self.gates is not None and row.answer_gates is not None:
            self.gates[row.slot] = row.answer_gates.to(self.gates.device)

    def remove(self, row: Row) -> None:
        if row.slot is not None:
            self.rows[row.slot] = None
            self.live[row.slot] = 0
            row.slot = None

    def move(self, row: Row, slot: int) -> None:
        """Moves a row into an empty slot."""
        assert row.slot is not None
        for column in self._columns():
            column[slot] = column[row.slot]
        self.rows[row.slot], self.rows[slot] = None, row
        self.live[row.slot] = 0
        row.slot = slot

    def wanted(self, rows: Sequence[Row]) -> Wanted:
        each = [row.request.sampling for row in rows]
        drawn = [p for p in each if p.temperature > 0.0]
        return Wanted(
            sampled=bool(drawn),
            truncated=any(p.top_k or p.top_p < 1.0 or p.min_p for p in drawn),
            logprobs=any(p.logprobs for p in each),
            top_logprobs=max((p.top_logprobs for p in each if p.logprobs), default=0),
            shaped=Shaped.of(rows),
        )

    def constrain(self, rows: Sequence[Row]) -> None:
        """Before a token is drawn for rows: reads what their grammars allow."""
        self.shaper.constrain(rows, self.high)

    @property
    def state(self) -> list[Tensor]:
        """What `draw` changes."""
        return [self.tokens, self.drawn, *self.shaper.state()]

    def draw(self, logits: Tensor, slots: slice | Tensor, wanted: Wanted) -> Drawn:
        """The next token of the rows in `slots`, from logits (r, v); live rows count it."""
        tokens = sample(
            self.shaper.apply(logits, slots, self.drawn[slots], wanted.shaped),
            self.temperature[slots],
            self.top_k[slots],
            self.top_p[slots],
            self.seed[slots],
            self.drawn[slots],
            greedy=not wanted.sampled,
            truncated=wanted.truncated,
            min_p=self.min_p[slots],
        )
        self.tokens[slots] = tokens
        if wanted.shaped.penalised:
            self.shaper.count(slots, tokens, self.live[slots])
        self.drawn[slots] += self.live[slots]
        return Drawn(tokens, *score(logits, tokens, wanted))

    def _columns(self) -> Iterator[Tensor]:
        if self.gates is not None:
            yield self.gates
        yield from (self.tokens, self.live, self.temperature, self.top_p)
        yield from (self.top_k, self.min_p, self.seed, self.drawn)
        yield from self.shaper.columns()


class Drawn(NamedTuple):
    """Tokens (r,), and where wanted their log-probabilities and the likeliest tokens (r, k)."""

    tokens: Tensor
    logprobs: Tensor | None
    top: tuple[Tensor, Tensor] | None  # log-probabilities and ids


def score(
    logits: Tensor, tokens: Tensor, wanted: Wanted
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """Log-probabilities of tokens (r,) under logits (r, v), and the likeliest tokens, as wanted."""
    if not wanted.logprobs:
        return None, None
    total = logits.logsumexp(dim=-1, keepdim=True)
    logprobs = (logits.gather(-1, tokens[:, None]) - total)[:, 0]
    if not wanted.top_logprobs:
        return logprobs, None
    values, ids = logits.topk(min(wanted.top_logprobs, logits.shape[-1]), dim=-1)
    return logprobs, (values - total, ids)
