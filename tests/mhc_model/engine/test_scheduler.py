"""Who gets a row, when and where."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from engine_cases import alone, make_row, random_prompts, run_to_end

from mhc_model import Engine, Request, SamplingParams
from mhc_model.decoder import KVCache
from mhc_model.engine import Row, scheduler
from mhc_model.engine.arena import KVArena
from mhc_model.engine.batch import Batch
from mhc_model.engine.prefix_cache import BLOCK, PrefixCache, block_names
from mhc_model.engine.scheduler import Scheduler


class Line(NamedTuple):
    """A scheduler and what it hands out."""

    scheduler: Scheduler
    batch: Batch
    arena: KVArena

    def wait(self, *rows: Row) -> None:
        for row in rows:
            row.blocks = block_names(row.prompt, row.gates)
            self.scheduler.waiting.append(row)

    def admitted(self) -> list[str]:
        return [row.request.id for row in self.scheduler.admit()]

    def waiting(self) -> list[str]:
        return [row.request.id for row in self.scheduler.waiting]

    def slots(self) -> list[str | None]:
        return [row and row.request.id for row in self.batch.rows]

    def read(self, row: Row) -> None:
        """What the engine does with a prompt, with its number in place of keys and values."""
        cache = self.arena.cache
        for storage in (cache.keys, cache.values):
            storage[:, row.slot, row.filled : len(row.prompt)] = float(row.prompt[0])
        row.filled = len(row.prompt)
        cache.lengths[row.slot] = row.filled
        self.scheduler.has_read(row)


@pytest.fixture
def line(tiny_config):
    """`line(rows=3, tokens=None)`: nobody waits; `tokens` is the budget of the arena."""

    def build(rows: int = 3, tokens: int | None = None) -> Line:
        config, cpu = tiny_config(max_seq_len=96), torch.device("cpu")
        size = KVCache.bytes_per_token(config, torch.float32)
        budget = None if tokens is None else tokens * size
        arena = KVArena(config, rows, None, budget, cpu, torch.float32)
        batch, prefixes = Batch(rows, 0, cpu), PrefixCache(1 << 24)
        return Line(Scheduler(batch, arena, prefixes), batch, arena)

    return build


def named(*names: str, size: int = 3) -> list[Row]:
    """Rows with prompts of their own."""
    return [make_row([i] * size, id=name) for i, name in enumerate(names)]


def test_first_come_first_served(line):
    line = line(rows=3)
    rows = named("a", "b", "c", "d", "e")
    line.wait(*rows)
    assert line.admitted() == ["a", "b", "c"]
    assert (line.waiting(), line.admitted()) == (["d", "e"], [])
    line.scheduler.release(rows[1])
    assert line.admitted() == ["d"]
    assert line.slots() == ["a", "d", "c"]
    assert (line.waiting(), rows[1].slot) == (["e"], None)
    assert all(row.started is not None for row in rows[:4])
    assert rows[4].started is None


def test_nobody_overtakes_a_row_that_finds_no_room(line):
    """Two rows of 48 tokens fit, or one of 96."""
    line = line(rows=3, tokens=98)
    short, other = named("short", "other", size=40)
    long = make_row([9] * 80, id="long")
    line.wait(short, long, other)
    assert line.admitted() == ["short"]
    assert line.waiting() == ["long", "other"]
    line.scheduler.release(short)
    assert (line.admitted(), line.waiting()) == (["long"], ["other"])
    assert line.arena.cache.max_seq_len == 96
    line.scheduler.release(long)
    # Rows only as long as they are needed: both find room again.
    line.wait(*named("third", size=40))
    assert line.admitted() == ["other", "third"]
    assert line.arena.cache.max_seq_len < 96


def test_a_new_layout_keeps_what_rows_hold(line):
    """Three rows of 24 tokens, or two of 48; the first of two has just ended."""
    line = line(rows=3, tokens=98)
    gone, short = named("gone", "short", size=7)
    line.wait(gone, short)
    line.admitted()
    line.read(gone)
    line.read(short)
    line.scheduler.release(gone)
    (long,) = named("long", size=40)
    line.wait(long)
    before = line.arena.cache
    assert (before.rows, before.max_seq_len) == (3, 24)
    assert line.admitted() == ["long"]
    assert line.slots() == ["short", "long", None]
    cache = line.arena.cache
    assert (cache.rows, cache.max_seq_len) == (2, 48)
    assert cache.lengths.tolist() == [7, 0]
    line.read(long)
    assert (cache.keys[:, 0, :7] == 1.0).all()
    assert (cache.keys[:, 1, :40] == 0.0).all()


def test_the_last_rows_fill_the_gaps(line):
    """With their tensors: a step works on all slots up to the last."""
    line = line(rows=4)
    rows = named("a", "b", "c", "d", size=7)
    line.wait(*rows)
    line.admitted()
    for row in rows:
        line.read(row)
    for row in (rows[0], rows[2]):
        line.scheduler.release(row)
    assert line.arena.cache.lengths.tolist() == [0, 7, 0, 7]
    assert line.admitted() == []
    assert line.slots() == ["d", "b", None, None]
    assert line.arena.cache.lengths[:2].tolist() == [7, 7]
    assert (line.arena.cache.keys[:, 0, :7] == 3.0).all()
    assert (line.arena.cache.values[:, 1, :7] == 1.0).all()


# Who waits for a beginning that another reads


def test_who_needs_what_another_reads_waits_and_lets_others_pass(line):
    line = line(rows=4)
    first, second = (make_row([5] * 40, id=name) for name in ("first", "second"))
    line.wait(first, second, *named("other"))
    assert (line.admitted(), line.waiting()) == (["first", "other"], ["second"])
    assert line.admitted() == []
    line.read(first)
    assert line.admitted() == ["second"]
    assert second.cached == second.filled == 40 // BLOCK * BLOCK
    cache = line.arena.cache
    assert int(cache.lengths[second.slot]) == second.filled
    assert (cache.keys[:, second.slot, : second.filled] == 5.0).all()


@pytest.mark.parametrize("how", ["released", "withdrawn"])
def test_who_waits_goes_on_when_the_reader_ends_early(line, how):
    line = line()
    first, second = (make_row([5] * 40, id=name) for name in ("first", "second"))
    line.wait(first, second)
    assert line.admitted() == ["first"]
    if how == "withdrawn":
        assert line.scheduler.withdraw(["first"]) == [first]
    line.scheduler.release(first)
    assert (line.admitted(), second.cached) == (["second"], 0)


def test_only_so_many_let_others_pass(line, monkeypatch):
    monkeypatch.setattr(scheduler, "MOST_PASSED", 2)
    line = line(rows=6)
    readers = [make_row([5] * 40, id=f"{i}") for i in range(4)]
    line.wait(*readers, *named("other"))
    # The first reads, two wait for it, and the fourth reads for itself.
    assert line.admitted() == ["0", "3", "other"]
    assert line.waiting() == ["1", "2"]


@pytest.mark.parametrize(
    ("size", "scored_from", "cached"),
    [
        (2 * BLOCK, None, BLOCK),  # the last token is fed in any case
        (2 * BLOCK + 1, None, 2 * BLOCK),
        (40, 2 * BLOCK, BLOCK),  # so is the one before the first that is scored
        (40, 2 * BLOCK + 1, 2 * BLOCK),
        (40, 0, 0),
        (BLOCK, None, 0),
    ],
)
def test_what_of_a_known_prompt_is_not_read_again(line, size, scored_from, cached):
    line = line()
    first = make_row([5] * 48, id="first")
    line.wait(first)
    line.admitted()
    line.read(first)
    again = make_row([5] * size, id="again", prompt_logprobs_from=scored_from)
    line.wait(again)
    assert line.admitted() == ["again"]
    assert (again.cached, again.filled) == (cached, cached)


def test_withdrawn_requests_leave_the_line(line):
    line = line(rows=2)
    rows = [*named("a", "b", "c"), *named("b"), *named("d")]
    line.wait(*rows)
    line.admitted()
    assert line.scheduler.withdraw({"b", "nobody"}) == [rows[1], rows[3]]
    # Rows of the batch are still to be released; who waited is gone.
    assert (line.slots(), line.waiting()) == (["a", "b"], ["c", "d"])
    for row in (rows[1], rows[3]):
        line.scheduler.release(row)
    assert (line.slots(), line.admitted()) == (["a", None], ["c"])


# Through the engine


def test_cancelling_frees_the_row_within_a_step(model):
    engine = Engine(model, max_batch=1)
    engine.add(Request([1], 0.5, SamplingParams(max_tokens=90), id="first"))
    engine.add(Request([2], 0.5, SamplingParams(max_tokens=1), id="second"))
    engine.step()
    engine.cancel("first")
    assert [each.request_id for each in engine.step()] == ["first", "second"]


def test_a_cancelled_reader_leaves_nobody_waiting(model):
    """Others wait for a beginning that is being computed; if that ends early they compute it."""
    prompt = random_prompts(1, 60, 60)[0]
    engine = Engine(model, max_batch=4, prefill_chunk=4)
    engine.add(Request([1], 0.5, SamplingParams(max_tokens=60)))
    engine.step()
    engine.add(Request(prompt, 0.5, SamplingParams(max_tokens=2), id="reader"))
    engine.add(Request(prompt, 0.5, SamplingParams(max_tokens=2), id="waiter"))
    engine.step()
    assert engine.waiting == 1
    engine.cancel("reader")
    done = run_to_end(engine)
    expected = alone(model, Request(prompt, 0.5, SamplingParams(max_tokens=2)))[0]
    assert done["reader"].finish_reason == "cancelled"
    assert done["waiter"].tokens == expected.tokens
