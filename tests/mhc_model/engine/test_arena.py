"""Room for keys and values: rows as long as requests need, within a budget of bytes."""

from __future__ import annotations

import pytest
import torch
from engine_cases import alone, assert_same, random_prompts, requests

from mhc_model import Engine, EngineError, Request, SamplingParams
from mhc_model.decoder import KVCache
from mhc_model.engine.arena import KVArena

CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture
def arena(tiny_config) -> KVArena:
    """For up to 12 rows, with a budget of two rows of 256 tokens."""
    config = tiny_config(max_seq_len=256)
    budget = 2 * 257 * KVCache.bytes_per_token(config, FLOAT)
    return KVArena(config, 12, None, budget, CPU, FLOAT)


def test_short_sequences_get_more_rows(arena):
    assert (arena.positions, arena.max_seq_len) == (514, 256)
    assert (arena.cache.rows, arena.cache.max_seq_len) == (2, 256)
    needs = (1, 32, 33, 64, 65, 128, 129, 256)
    assert [arena.limit_of(need) for need in needs] == [32, 32, 64, 64, 128, 128, 256, 256]
    most = {32: 12, 64: 7, 128: 3, 256: 2}  # with one more position a row, the spare one
    for limit, rows in most.items():
        assert arena.fits(limit, rows)
        assert not arena.fits(limit, rows + 1)
    assert arena.serves(64, 2)
    assert not arena.serves(64, 3), "it would fit, and is not laid out"
    arena.lay_out(32, 0)
    assert arena.serves(32, 12)
    assert not arena.serves(33, 1)


def test_a_layout_is_rows_that_share_no_position(arena):
    for limit, rows in ((32, 12), (128, 3), (256, 2), (64, 7)):
        arena.lay_out(limit, 0)
        cache = arena.cache
        assert (cache.rows, cache.max_seq_len) == (rows, limit)
        assert cache.lengths.tolist() == [0] * rows
        for storage in (cache.keys, cache.values):
            for row in range(rows):
                storage[:, row] = row
            assert all((storage[:, row] == row).all() for row in range(rows))
            assert storage.shape[:3] == (3, rows, limit + 1)


def test_the_first_rows_keep_what_they_hold(arena):
    """Old and new rows overlap in the storage."""
    arena.lay_out(32, 0)
    lengths = [5, 32, 30, 0, 17, 9]
    held = torch.randn(2, 3, 6, 32, 4, 8, generator=torch.Generator().manual_seed(0))
    arena.cache.keys[:, :6, :32], arena.cache.values[:, :6, :32] = held
    arena.cache.lengths[:6] = torch.tensor(lengths)
    for limit, kept in ((64, 5), (128, 3), (32, 3)):  # longer, longer, shorter
        arena.lay_out(limit, kept)
        assert arena.cache.lengths[:kept].tolist() == lengths[:kept]
        assert arena.cache.lengths[kept:].tolist() == [0] * (arena.cache.rows - kept)
        for row, length in enumerate(lengths[:kept]):
            assert torch.equal(arena.cache.keys[:, row, :length], held[0][:, row, :length])
            assert torch.equal(arena.cache.values[:, row, :length], held[1][:, row, :length])


@pytest.mark.parametrize(
    ("options", "rows", "limit"),
    [
        ({}, 4, 48),
        ({"max_seq_len": 20}, 4, 20),
        ({"tokens": 49 * 4 - 1}, 3, 48),
        ({"tokens": 49 * 4 + 100}, 4, 48),  # no more than all rows can hold
        ({"tokens": 48}, 1, 47),
        ({"tokens": 2}, 1, 1),
    ],
)
def test_sizes(tiny_config, options, rows, limit):
    config = tiny_config()
    tokens = options.get("tokens")
    budget = None if tokens is None else tokens * KVCache.bytes_per_token(config, FLOAT)
    arena = KVArena(config, 4, options.get("max_seq_len"), budget, CPU, FLOAT)
    assert (arena.cache.rows, arena.max_seq_len) == (rows, limit)
    assert arena.positions <= 4 * 49
    if budget is not None:
        assert arena._keys.nbytes + arena._values.nbytes <= budget


# Through the engine


def test_a_memory_budget_makes_requests_wait_and_loses_none(model):
    """Budgets down to a single row give the same completions; memory stays below them."""
    wanted = requests(12, most=40)
    expected = [alone(model, request)[0] for request in wanted]
    size = KVCache.bytes_per_token(model.config, torch.float32)
    most_active = {}
    for positions in (97, 150, 300, 97 * 12):
        budget = positions * size
        engine = Engine(model, max_batch=12, kv_cache_bytes=budget)
        arena = engine._arena
        assert arena._keys.nbytes + arena._values.nbytes <= budget
        for request in wanted:
            engine.add(request)
        done, most = {}, 0
        while engine.has_work:
            done.update((each.request_id, each) for each in engine.step())
            stats = engine.stats()
            assert stats.kv_tokens <= stats.kv_capacity <= positions
            most = max(most, engine.active)
        for request, completion in zip(wanted, expected, strict=True):
            assert_same(done[request.id], completion)
        most_active[positions] = most
    # Short rows share what one long row would take.
    assert most_active[97] >= 1
    assert 2 <= most_active[150] < most_active[300] < 12
    assert most_active[97 * 12] == 12


def test_rows_in_use_survive_a_new_layout(model):
    """A long request joins two short ones that are half done: rows become longer and fewer."""
    size = KVCache.bytes_per_token(model.config, torch.float32)
    engine = Engine(model, max_batch=12, kv_cache_bytes=3 * 97 * size, prefix_cache_bytes=0)
    prompts = random_prompts(4, 4, 4)
    lengths = [3, 20, 20, 3]
    short = [
        Request(prompt, 0.4, SamplingParams(max_tokens=length, logprobs=True))
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    long = Request(
        random_prompts(1, 60, 60, seed=3)[0], 0.8, SamplingParams(max_tokens=30, logprobs=True)
    )
    for request in (*short, long):
        engine.add(request)
    done, laid_out = {}, []
    while engine.has_work:
        done.update((each.request_id, each) for each in engine.step())
        laid_out.append(engine._arena.cache.rows)
    assert laid_out[0] == 11
    assert laid_out[-1] == 3
    assert engine.stats().finished == 5
    for request in (*short, long):
        assert_same(done[request.id], alone(model, request)[0])


def test_a_budget_too_small(model):
    size = KVCache.bytes_per_token(model.config, torch.float32)
    with pytest.raises(EngineError, match=f"kv_cache_bytes is {size}.* at least {2 * size}"):
        Engine(model, kv_cache_bytes=size)
    engine = Engine(model, kv_cache_bytes=41 * size)
    assert engine.max_seq_len == 40
    with pytest.raises(EngineError, match="make 41; the context is 40"):
        engine.add(Request([1] * 31, 0.5, SamplingParams(max_tokens=10)))
    assert len(engine.generate([Request([1] * 30, 0.5, SamplingParams(max_tokens=10))])) == 1
