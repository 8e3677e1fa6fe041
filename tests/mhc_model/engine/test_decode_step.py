"""The decoding step: one more token for every row, on any shape, recorded or not."""

from __future__ import annotations

import pytest
import torch
from engine_cases import alone, assert_same, make_row, requests

from mhc_model import Engine, EngineError
from mhc_model.decoder import KVCache
from mhc_model.engine.batch import Batch
from mhc_model.engine.decode import DecodeStep


@torch.inference_mode()
@pytest.mark.parametrize("rounds_up", [False, True])
def test_a_step_moves_the_rows_that_decode_and_no_other(model, rounds_up):
    """Slots 0 and 2 decode, slot 1 still reads its prompt."""
    prompts = [[5, 6, 7], [8, 9, 10], [11, 12]]
    gates = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    batch, cache = Batch(4, 6, torch.device("cpu")), KVCache.allocate(model.config, 4, 40)
    rows = [make_row(p, gates=g, logprobs=True) for p, g in zip(prompts, gates, strict=True)]
    for slot, (row, length) in enumerate(zip(rows, (3, 1, 2), strict=True)):
        batch.put(row, slot)
        own = cache.slice(slot, slot + 1)
        model(torch.tensor([row.prompt[:length]]), gates[slot : slot + 1], own)
    batch.live[[0, 2]] = 1
    batch.tokens[:3] = torch.tensor([20, 21, 22])
    before = cache.keys.clone(), batch.drawn.clone()
    step = DecodeStep(model, batch, records=False)
    step.rounds_up = rounds_up
    drawn = step(cache, 3, 4, batch.wanted(rows))
    assert cache.lengths.tolist() == [4, 1, 3, 0]
    assert batch.drawn.tolist() == [1, 0, 1, 0]
    for slot in (0, 2):
        sequence = torch.tensor([[*prompts[slot], 20 + slot]])
        scores = model(sequence, gates[slot : slot + 1])[0, -1].log_softmax(dim=-1)
        assert int(drawn.tokens[slot]) == int(batch.tokens[slot]) == int(scores.argmax())
        assert float(drawn.logprobs[slot]) == pytest.approx(float(scores.max()), abs=1e-5)
    # What the row in between has read is as it was.
    assert torch.equal(cache.keys[:, 1, :1], before[0][:, 1, :1])


def test_steps_of_a_few_shapes_change_nothing(model):
    """What a recorded step works on: rows and positions rounded up, on whatever device."""
    wanted = requests(12, most=40)
    engine = Engine(model, max_batch=7)
    engine._decode_step.rounds_up = True
    for request, completion in zip(wanted, engine.generate(wanted), strict=True):
        assert_same(completion, alone(model, request)[0])


def test_recording_needs_a_gpu(model):
    with pytest.raises(EngineError, match="cuda_graphs needs a model on a GPU; it is on cpu"):
        Engine(model, cuda_graphs=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_recorded_steps_change_nothing(tiny_model, temperature):
    model = tiny_model(max_seq_len=96).to("cuda")
    wanted = requests(12, most=40, temperature=temperature, seed=2)
    expected = Engine(model, max_batch=5).generate(wanted)
    recorded = Engine(model, max_batch=5, cuda_graphs=True)
    for _ in range(2):
        for a, b in zip(recorded.generate(wanted), expected, strict=True):
            assert_same(a, b)
