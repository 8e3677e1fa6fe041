"""Which tokens belong to which step: a pure function, so that resuming needs no replay.

The tokens are cut into blocks of `context` inputs, each with the token that follows. An epoch
visits every block once, in an order drawn from (seed, epoch). Step s takes the next `batch` blocks
of the endless sequence of epochs, whatever the number of workers. The order is a permutation that
is computed place by place, so that a corpus of any size needs no table of it.

All tokens of a block are of one group (`train.data.groups`), for gates belong to whole sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mhc_model.errors import DataError
from train.data.groups import NO_GROUP
from train.data.shards import ShardedTokens

ROUNDS = 6


@dataclass(frozen=True)
class GroupedTokens:
    """Tokens in memory where rows have groups, with the face of `ShardedTokens`: a shard a group.

    Attributes:
        shards: (count,) unsigned integers each.
        shard_groups: (shards,) int64 group of each, -1 of none.
    """

    shards: tuple[np.ndarray, ...]
    shard_groups: np.ndarray

    @cached_property
    def lengths(self) -> np.ndarray:
        """(shards,) int64 tokens of each."""
        return np.array(list(map(len, self.shards)), dtype=np.int64)

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def read(self, shard: int, start: int, count: int) -> np.ndarray:
        """(count,) tokens of a shard from `start`."""
        return self.shards[shard][start : start + count]


Tokens = np.ndarray | GroupedTokens | ShardedTokens


class Batches:
    """The batches of all steps, by step number."""

    def __init__(self, tokens: Tokens, context: int, batch: int, seed: int) -> None:
        """Cuts the tokens; no block crosses from one shard to the next.

        Args:
            tokens: (count,) unsigned integers of no group, or shards of them.
            context: tokens of a sequence.
            batch: sequences of a step, all workers together.
            seed: of the order.

        Raises:
            DataError: if the corpus is smaller than one step.
        """
        self.tokens = tokens
        self.context = context
        self.batch = batch
        if isinstance(tokens, np.ndarray):
            lengths, self._groups = np.array([len(tokens)]), np.array([NO_GROUP])
        else:
            lengths, self._groups = tokens.lengths, tokens.shard_groups
        # Block b is of the first shard whose end is beyond b.
        self._ends = np.cumsum(np.maximum(lengths - 1, 0) // context)
        self._starts = np.concatenate([[0], self._ends[:-1]])
        self.blocks = int(self._ends[-1])
        if self.blocks < batch:
            raise DataError(
                f"the corpus has {len(tokens)} tokens, {self.blocks} sequences of "
                f"{context}, but one step takes {batch} sequences ({batch * context} tokens); give "
                f"more data or lower total_batch_tokens"
            )
        # A step touches two epochs at most.
        self._keys = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).integers(
                2**64, size=ROUNDS, dtype=np.uint64
            )
        )

    def block_ids(self, step: int, start: int, stop: int) -> np.ndarray:
        """Blocks of the sequences start .. stop of step 1, 2, ...; (stop - start,) int64."""
        first = (step - 1) * self.batch
        positions = np.arange(first + start, first + stop)
        epochs, places = np.divmod(positions, self.blocks)
        ids = np.empty_like(positions)
        for epoch in np.unique(epochs):
            own = epochs == epoch
            ids[own] = permute(places[own], self.blocks, self._keys(int(epoch)))
        return ids

    def sequences(self, step: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the sequences start .. stop of a step, each (b, t) int64.

        Raises:
            DataError: if a shard cannot be read; it names it.
        """
        ids = self.block_ids(step, start, stop)
        shards = np.searchsorted(self._ends, ids, side="right")
        blocks = ids - self._starts[shards]
        rows = np.empty((len(ids), self.context + 1), dtype=np.int64)
        for row, shard, block in zip(rows, shards.tolist(), blocks.tolist(), strict=True):
            row[:] = self._read(shard, block * self.context, self.context + 1)
        tensor = torch.from_numpy(rows)
        return tensor[:, :-1], tensor[:, 1:]

    def groups(self, step: int, start: int, stop: int) -> Tensor:
        """Groups of the same sequences, (b,) int64: places in the corpus's, -1 of none."""
        ids = self.block_ids(step, start, stop)
        return torch.from_numpy(self._groups[np.searchsorted(self._ends, ids, side="right")])

    def count_sequences(self, group: int) -> int:
        """How many an epoch has of a group."""
        return int((self._ends - self._starts)[self._groups == group].sum())

    def _read(self, shard: int, start: int, count: int) -> np.ndarray:
        if isinstance(self.tokens, np.ndarray):
            return self.tokens[start : start + count]
        return self.tokens.read(shard, start, count)


def permute(places: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a pseudo-random permutation of range(size) sends `places`.

    A Feistel network permutes the numbers of an even number of bits; a number that falls beyond
    `size` is sent on until it does not (cycle walking; Black and Rogaway, 2002), less than four
    times on average.

    Args:
        places: (k,) integers in [0, size).
        size: at least 1.
        keys: (rounds,) uint64, which choose the permutation.

    Returns:
        (k,) int64 in [0, size), different for different places.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    values = _feistel(places.astype(np.uint64), half, keys)
    while (beyond := values >= size).any():
        values[beyond] = _feistel(values[beyond], half, keys)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return left << half | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), on uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Sequences(Protocol):
    """What gives the sequences of a step, as `Batches` does."""

    def sequences(self, step: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Batches.sequences`."""


class Part(NamedTuple):
    """Sequences `start` to `stop` of a step."""

    step: int
    start: int
    stop: int


class ReadAhead:
    """The same batches, read by a thread before one worker asks for them.

    It expects to be asked for the worker's own sequences of a step, one forward pass after another,
    and then for those of the next step. Another question is answered as well, just not in advance.
    """

    def __init__(
        self,
        batches: Sequences,
        own: range,
        device_batch: int,
        depth: int = 4,
        pinned: bool = False,
    ) -> None:
        """Starts nothing yet: reading begins with the first question.

        Args:
            batches: of all workers.
            own: sequences of every step that this worker takes.
            device_batch: sequences of one forward pass; divides len(own).
            depth: forward passes that are kept ready.
            pinned: in page-locked memory, from which copies to a GPU do not wait.
        """
        self.batches, self.own, self.device_batch, self.depth = batches, own, device_batch, depth
        self.pinned = pinned
        self._thread: ThreadPoolExecutor | None = None
        self._ready: dict[Part, Future[tuple[Tensor, Tensor]]] = {}

    def sequences(self, step: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Batches.sequences`."""
        part = Part(step, start, stop)
        if part not in self._ready:  # the first question, or a jump
            for future in self._ready.values():
                future.cancel()
            self._ready = {part: self._submit(part)}
        result = self._ready.pop(part)
        for following in self._following(part):
            if following not in self._ready:
                self._ready[following] = self._submit(following)
        return result.result()

    def close(self) -> None:
        """Ends the thread; another question starts it again."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread, self._ready = None, {}

    def _following(self, part: Part) -> Iterator[Part]:
        step, start = part.step, part.start
        for _ in range(self.depth):
            start += self.device_batch
            if start >= self.own.stop:
                step, start = step + 1, self.own.start
            yield Part(step, start, start + self.device_batch)

    def _submit(self, part: Part) -> Future[tuple[Tensor, Tensor]]:
        if self._thread is None:
            # One thread: shards are read by one at a time.
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        return self._thread.submit(self._load, part)

    def _load(self, part: Part) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batches.sequences(*part)
        return (inputs.pin_memory(), targets.pin_memory()) if self.pinned else (inputs, targets)
