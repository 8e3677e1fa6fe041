"""Who gets a row, when and where: the waiting samples, the batch, and the memory of the cache."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from mhc_model.engine.arena import KVArena
from mhc_model.engine.batch import Batch
from mhc_model.engine.prefix_cache import BLOCK, PrefixCache
from mhc_model.engine.row import Row

# At most so many samples are put back at once because another row is about to compute the
# beginning of their prompt. The samples behind them go first meanwhile.
MOST_PASSED = 64


class Scheduler:
    """First come, first served, with one exception: samples that wait for a shared beginning.

    If another row is about to compute the beginning of a sample's prompt, the sample waits for it
    and the samples behind it pass.

    Attributes:
        waiting: samples without a row, in their order.
    """

    def __init__(self, batch: Batch, arena: KVArena, prefixes: PrefixCache) -> None:
        self.waiting: deque[Row] = deque()
        self._batch = batch
        self._arena = arena
        self._prefixes = prefixes
        self._reading: dict[bytes, Row] = {}  # blocks that a row is about to compute

    def admit(self) -> list[Row]:
        """Gives rows to those in front of the line, as far as there is room; returns those."""
        placed: list[Row] = []
        passed: list[Row] = []
        while self.waiting and self._batch.free_slot() < self._batch.size:
            row = self.waiting.popleft()
            if len(passed) < MOST_PASSED and self._is_being_read(row):
                passed.append(row)
            elif self._place(row):
                placed.append(row)
            else:
                passed.append(row)
                break
        self.waiting.extendleft(reversed(passed))
        self._close_gaps()
        return placed

    def has_read(self, row: Row) -> None:
        """Keeps the beginning of a prompt that is read to its end, for samples that wait for it."""
        if row.slot is not None:
            self._prefixes.store(row.blocks, self._arena.cache, row.slot)
        self._forget_reader(row)

    def release(self, row: Row) -> None:
        """Frees what a row holds; it may also be one that waited."""
        self._forget_reader(row)
        if row.slot is not None:
            self._arena.cache.lengths[row.slot] = 0
            self._batch.remove(row)

    def withdraw(self, request_ids: Iterable[str]) -> list[Row]:
        """Takes the samples of requests out of the line and returns all of theirs, also in rows."""
        ids = set(request_ids)
        rows = [row for row in (*self._batch.taken, *self.waiting) if row.request.id in ids]
        self.waiting = deque(row for row in self.waiting if row.request.id not in ids)
        return rows

    def _is_being_read(self, row: Row) -> bool:
        """Whether blocks that it lacks are about to come into the prefix cache."""
        useful = row.blocks[: _reusable_blocks(row)]
        known = self._prefixes.match(useful)
        return known < len(useful) and useful[known] in self._reading

    def _place(self, row: Row) -> bool:
        """Gives a row of the batch and of the cache; False if there is none now."""
        taken, arena = self._batch.taken, self._arena
        limit, count = arena.limit_of(max(r.need for r in (*taken, row))), len(taken) + 1
        if not arena.fits(limit, count):
            return False
        if not arena.serves(limit, count):
            self._close_gaps()
            arena.lay_out(limit, len(taken))
        slot = self._batch.free_slot()
        self._batch.put(row, slot)
        row.started = time.perf_counter()
        known = row.blocks[: _reusable_blocks(row)]
        known = known[: self._prefixes.match(known)]
        self._prefixes.load(known, arena.cache, slot)
        row.filled = row.cached = len(known) * BLOCK
        arena.cache.lengths[slot] = row.filled
        for name in row.blocks[len(known) :]:
            self._reading.setdefault(name, row)
        return True

    def _close_gaps(self) -> None:
        """Moves the last rows into empty slots: a step works on all up to the last one."""
        taken = self._batch.taken
        while taken:
            last = taken.pop()
            slot = self._batch.free_slot()
            if last.slot is None or slot > last.slot:
                return
            self._arena.cache.copy_row(last.slot, slot, last.length)
            self._batch.move(last, slot)

    def _forget_reader(self, row: Row) -> None:
        for name in row.blocks:
            if self._reading.get(name) is row:
                del self._reading[name]


def _reusable_blocks(row: Row) -> int:
    """Blocks of a prompt that need not be computed if they are in the prefix cache."""
    scored = row.request.sampling.prompt_logprobs_from
    # The last token is fed in any case: what follows it is drawn from its output. So is the one
    # before the first whose log-probability is wanted.
    tokens = len(row.prompt) - 1 if scored is None else min(len(row.prompt), scored) - 1
    return max(0, tokens) // BLOCK
