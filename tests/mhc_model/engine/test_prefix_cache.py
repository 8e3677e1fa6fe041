"""Beginnings of prompts that are kept: their names, what makes room, and what is reused."""

from __future__ import annotations

import pytest
import torch
from engine_cases import alone, assert_same, random_prompts

from mhc_model import Engine, Request, SamplingParams
from mhc_model.decoder import KVCache
from mhc_model.engine.prefix_cache import BLOCK, PrefixCache, block_names


def test_names_of_blocks():
    prompt = list(range(40))
    names = block_names(prompt, torch.tensor([0.5, 0.25]))
    assert len(names) == 40 // BLOCK
    assert block_names([*prompt[:16], *range(50, 70)], torch.tensor([0.5, 0.25]))[0] == names[0]
    assert block_names([7, *prompt[1:]], torch.tensor([0.5, 0.25]))[1] != names[1]
    assert not set(block_names(prompt, torch.tensor([0.5, 0.26]))) & set(names)
    assert not set(block_names(prompt, None)) & set(names)


@pytest.fixture
def kept(tiny_config):
    """`kept(blocks)`: a cache of so many blocks, one of keys and values with a number a row."""
    config = tiny_config()
    rows = KVCache.allocate(config, rows=3)
    for storage in (rows.keys, rows.values):
        storage += torch.arange(1, 4)[None, :, None, None, None]
    size = BLOCK * KVCache.bytes_per_token(config, torch.float32)
    return lambda blocks: (PrefixCache(blocks * size), rows, size)


NAMES = [bytes([i]) * 32 for i in range(9)]


def test_blocks_come_back_as_they_were_stored(kept):
    prefixes, rows, size = kept(4)
    assert prefixes.match(NAMES[:2]) == 0
    prefixes.store(NAMES[:2], rows, 1)
    assert (prefixes.match(NAMES[:3]), prefixes.size) == (2, 2 * size)
    assert prefixes.match([NAMES[5], NAMES[0]]) == 0, "only a beginning without a gap counts"
    rows.keys[:, 1] = rows.values[:, 1] = 99.0  # the row goes on to others
    prefixes.load(NAMES[:2], rows, 0)
    for storage in (rows.keys, rows.values):
        assert (storage[:, 0, : 2 * BLOCK] == 2.0).all()
        assert (storage[:, 0, 2 * BLOCK :] == 1.0).all()
    prefixes.clear()
    assert (prefixes.match(NAMES), prefixes.size) == (0, 0)


def test_the_least_recently_used_blocks_make_room(kept):
    prefixes, rows, size = kept(4)
    prefixes.store(NAMES[:2], rows, 0)
    prefixes.store(NAMES[2:4], rows, 1)
    prefixes.load(NAMES[:2], rows, 2)  # used again
    prefixes.store(NAMES[4:5], rows, 1)
    # Of the other beginning the end goes first: without its first block the rest is of no use.
    assert (prefixes.match(NAMES[:2]), prefixes.match(NAMES[2:4])) == (2, 1)
    assert prefixes.size == 4 * size


def test_a_beginning_beyond_the_size_is_kept_as_far_as_it_fits(kept):
    prefixes, rows, size = kept(3)
    prefixes.store(NAMES[5:7], rows, 0)
    prefixes.store(NAMES[:3], rows, 1)
    prefixes.store(NAMES[:5], rows, 1)
    assert (prefixes.match(NAMES[:5]), prefixes.size) == (3, 3 * size)
    nothing, rows, _ = kept(0)
    nothing.store(NAMES[:2], rows, 0)
    assert nothing.match(NAMES[:2]) == 0


# Through the engine


def test_equal_beginnings_are_computed_once(model):
    shared = random_prompts(1, 48, 48)[0]
    wanted = [
        Request([*shared, i], gates, SamplingParams(max_tokens=5, logprobs=True))
        for i in range(6)
        for gates in (0.2, [0.9, 0.1, 0.4], None)
    ]
    engine = Engine(model, max_batch=18)
    for request, completion in zip(wanted, engine.generate(wanted), strict=True):
        assert_same(completion, alone(model, request)[0])
    # Even of requests that came at once, one for each gate vector does the work.
    assert engine.stats().cached_tokens == 48 * 3 * 5
    assert engine.stats().prompt_tokens == 49 * 18


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_a_whole_prompt_in_the_cache(model, length):
    """Its last token is fed all the same: the first of the answer is drawn from it."""
    prompt = random_prompts(1, length, length)[0]
    engine = Engine(model)
    sampling = SamplingParams(max_tokens=4, logprobs=True)
    expected = alone(model, Request(prompt, 0.6, sampling))[0]
    for time in range(3):
        (completion,) = engine.generate([Request(prompt, 0.6, sampling)])
        assert_same(completion, expected)
        assert completion.cached_tokens == (0 if time == 0 else (length - 1) // BLOCK * BLOCK)


def test_other_gates_share_nothing(model):
    """Gates differ in the first layer, whose mixing changes what later layers keep."""
    prompt = random_prompts(1, 60, 60)[0]
    sampling = SamplingParams(max_tokens=5, logprobs=True)
    engine = Engine(model)
    for gates in ([0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]):
        request = Request(prompt, gates, sampling)
        (completion,) = engine.generate([request])
        assert_same(completion, alone(model, request)[0])
    assert engine.stats().cached_tokens == (60 - 1) // BLOCK * BLOCK


def test_the_prefix_cache_keeps_to_its_size(model):
    size = BLOCK * KVCache.bytes_per_token(model.config, torch.float32)
    engine = Engine(model, prefix_cache_bytes=4 * size)
    sampling = SamplingParams(max_tokens=2, logprobs=True)
    prompts = random_prompts(5, 60, 60)
    for prompt in prompts:
        engine.generate([Request(prompt, 0.5, sampling)])
        assert engine.stats().prefix_cache_bytes <= 4 * size
    before = engine.stats().cached_tokens
    assert before == 0
    engine.generate([Request(prompts[0], 0.5, sampling)])
    assert engine.stats().cached_tokens == 0, "the first has made room"
    engine.generate([Request(prompts[0], 0.5, sampling)])
    assert engine.stats().cached_tokens == 3 * BLOCK
    engine.clear_prefix_cache()
    assert engine.stats().prefix_cache_bytes == 0
