"""The key-value cache: decoding with it equals the forward pass without it."""

from __future__ import annotations

import pytest
import torch

from mhc_model import EngineError
from mhc_model.decoder import KVCache

VARIANTS = {
    "plain": {"plain": True},
    "mhc": {},
    "mhc, grouped heads": {"n_kv_heads": 2},
    "plain, one key head": {"plain": True, "n_kv_heads": 1},
}


@pytest.fixture(params=VARIANTS)
def case(request, tiny_model):
    """A model, 3 x 20 tokens, gates of their own for each row, and the uncached logits."""
    model = tiny_model(**VARIANTS[request.param])
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 61, (3, 20), generator=generator)
    gates = torch.rand(3, 6, generator=generator) if model.config.mhc else None
    with torch.no_grad():
        return model, tokens, gates, model(tokens, gates)


@pytest.mark.parametrize("chunks", [[1] * 20, [20], [7, 1, 1, 5, 6], [1, 19]])
def test_cached_decoding_equals_the_uncached_forward(case, chunks):
    model, tokens, gates, expected = case
    cache = KVCache.allocate(model.config, rows=3)
    with torch.no_grad():
        parts = [model(part, gates, cache) for part in tokens.split(chunks, dim=1)]
    assert cache.lengths.tolist() == [20, 20, 20]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=0)


def test_ragged_rows_equal_each_row_alone(case):
    """Prompts padded on the right, lengths set back, then decoding at different positions."""
    model, tokens, gates, expected = case
    prompts = torch.tensor([5, 12, 9])
    cache = KVCache.allocate(model.config, rows=3, max_seq_len=20)
    padded = tokens[:, :12].clone()
    for row, length in enumerate(prompts):
        padded[row, length:] = 60
    with torch.no_grad():
        logits = model(padded, gates, cache)
        cache.lengths.copy_(prompts)
        for row, length in enumerate(prompts):
            torch.testing.assert_close(
                logits[row, :length], expected[row, :length], atol=1e-4, rtol=0
            )
        for step in range(8):
            at = prompts + step
            logits = model(tokens[torch.arange(3), at][:, None], gates, cache)
            torch.testing.assert_close(
                logits[:, 0], expected[torch.arange(3), at], atol=1e-4, rtol=0
            )
    assert cache.lengths.tolist() == [13, 20, 17]


def test_slices_are_views(case):
    model, tokens, gates, expected = case
    cache = KVCache.allocate(model.config, rows=5)
    part = cache.slice(1, 4)
    assert (part.rows, part.max_seq_len) == (3, 48)
    with torch.no_grad():
        model(tokens[:, :10], gates, part)
        assert cache.lengths.tolist() == [0, 10, 10, 10, 0]
        assert cache.keys[:, 0].abs().max() == cache.keys[:, 4].abs().max() == 0
        assert cache.keys[:, 1:4, :10].abs().min() > 0
        # A row of its own goes on where the slice left it.
        row = cache.slice(2, 3)
        logits = model(tokens[1:2, 10:], None if gates is None else gates[1:2], row)
    torch.testing.assert_close(logits, expected[1:2, 10:], atol=1e-4, rtol=0)
    assert cache.lengths.tolist() == [0, 10, 20, 10, 0]


def test_a_copied_row_goes_on_as_the_original(case):
    model, tokens, gates, expected = case
    cache = KVCache.allocate(model.config, rows=3)
    with torch.no_grad():
        model(tokens[:, :10], gates, cache)
        cache.keys[:, 0] = 77.0  # whatever lies there
        cache.lengths[0] = 15
        cache.copy_row(2, 0, 10)
        assert cache.lengths.tolist() == [10, 10, 10]
        row = cache.slice(0, 1)
        logits = model(tokens[2:, 10:], None if gates is None else gates[2:], row)
    torch.testing.assert_close(logits, expected[2:, 10:], atol=1e-4, rtol=0)


def test_a_row_depends_on_its_gates(tiny_model):
    """Keys of layer 0 do not see gates, later ones do: no sharing between gate vectors."""
    model = tiny_model()
    tokens = torch.arange(8)[None].repeat(2, 1)
    cache = KVCache.allocate(model.config, rows=2)
    with torch.no_grad():
        model(tokens, torch.tensor([[0.0] * 6, [1.0] * 6]), cache)
    first, last = cache.keys[0], cache.keys[-1]
    assert torch.equal(first[0], first[1])
    assert (last[0] - last[1]).abs().max() > 0.05


def test_bfloat16_cache(tiny_model):
    model = tiny_model()
    tokens, gates = torch.arange(12)[None], torch.full((1, 6), 0.5)
    cache = KVCache.allocate(model.config, rows=1, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = torch.cat([model(part, gates, cache) for part in tokens.split(4, dim=1)], dim=1)
        assert (logits - model(tokens, gates)).abs().mean() < 0.05


@pytest.mark.parametrize("limit", [0, -1, 49])
def test_refuses_a_length_outside_of_the_context(tiny_config, limit):
    with pytest.raises(EngineError, match=rf"cache length {limit} .* 1 to 48"):
        KVCache.allocate(tiny_config(), rows=1, max_seq_len=limit)


def test_overflow_is_an_error_and_changes_nothing(tiny_model):
    model = tiny_model()
    cache = KVCache.allocate(model.config, rows=2, max_seq_len=8)
    tokens, gates = torch.ones(2, 6, dtype=torch.int64), torch.ones(2, 6)
    with torch.no_grad():
        model(tokens, gates, cache)
        with pytest.raises(EngineError, match=r"sequence of 12 tokens exceeds .* 8 positions"):
            model(tokens, gates, cache)
        assert cache.lengths.tolist() == [6, 6]
        model(tokens[:, :2], gates, cache)
    assert cache.lengths.tolist() == [8, 8]


def test_refuses_another_number_of_rows(tiny_model):
    model = tiny_model()
    cache = KVCache.allocate(model.config, rows=4)
    with pytest.raises(EngineError, match="1 sequences for a cache of 4 rows"):
        model(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 6), cache)
    assert cache.lengths.tolist() == [0] * 4


def test_selected_rows_in_any_order_with_padding_up_to_the_end(case):
    """Rows of different lengths side by side; what is padding harms nobody."""
    model, tokens, gates, expected = case
    cache = KVCache.allocate(model.config, rows=5, max_seq_len=20)
    of_rows = [4, 0, 3]
    own = [17, 9, 12]
    with torch.no_grad():
        for row, length, sequence in zip(of_rows, own, range(3), strict=True):
            one = None if gates is None else gates[sequence : sequence + 1]
            model(tokens[sequence : sequence + 1, :length], one, cache.slice(row, row + 1))
        part = cache.select(torch.tensor(of_rows), width=20)
        rest = torch.zeros(3, 11, dtype=torch.int64)
        for sequence, length in enumerate(own):
            rest[sequence, : 20 - length] = tokens[sequence, length:20]
        logits = model(rest, gates, part)
    for sequence, length in enumerate(own):
        torch.testing.assert_close(
            logits[sequence, : 20 - length], expected[sequence, length:20], atol=1e-4, rtol=0
        )
    assert cache.lengths.tolist() == [9, 0, 0, 12, 17], "lengths of selected rows are the caller's"
    assert cache.keys[:, 1:3].abs().max() == 0
