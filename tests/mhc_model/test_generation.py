"""Text from text, in one call."""

from __future__ import annotations

import pytest

from mhc_model import Engine, Request, SamplingParams, generate
from mhc_model.errors import EngineError, GateError


def test_it_is_the_engine(checkpoints, small_tokenizer):
    engine = Engine.from_checkpoint(checkpoints / "mhc", device="cpu")
    prompts = ["Question: Tom", "12"]
    rows = small_tokenizer.encode_batch(prompts, bos=True)
    sampling = SamplingParams(max_tokens=7, temperature=1.0, seed=3)
    requests = [Request(row, gates=0.3, sampling=sampling) for row in rows]
    expected = [completion.text for completion in engine.generate(requests)]
    options = {"max_tokens": 7, "temperature": 1.0, "seed": 3}
    assert generate(checkpoints / "mhc", prompts, 0.3, **options) == expected
    assert generate(engine, prompts[0], 0.3, **options) == expected[:1]
    assert generate(engine, prompts, 0.9, **options) != expected


def test_what_is_refused(checkpoints, tiny_model):
    with pytest.raises(EngineError, match="max_token"):
        generate(checkpoints / "mhc", "a", max_token=3)
    with pytest.raises(GateError, match="plain"):
        generate(checkpoints / "plain", "a", 0.5, max_tokens=2)
    with pytest.raises(EngineError, match="no tokenizer"):
        generate(Engine(tiny_model()), "a", max_tokens=2)
