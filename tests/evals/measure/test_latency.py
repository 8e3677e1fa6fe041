"""Latency of tiny models, in turn."""

from __future__ import annotations

import pytest

from evals.measure import Load, measure_latency
from mhc_model.errors import ConfigError


def test_latency_takes_models_in_turn(make_model, monkeypatch):
    models = {"plain": make_model(mhc=False), "mhc": make_model()}
    order = []
    for name, model in models.items():
        forward = model.hidden
        monkeypatch.setattr(
            model, "hidden", lambda *a, f=forward, n=name, **k: order.append(n) or f(*a, **k)
        )
    found = measure_latency(models, (1, 4), Load(12, 5), repeats=3)
    rows = [(row["model"], row["batch"]) for row in found["rows"]]
    assert rows == [("plain", 1), ("mhc", 1), ("plain", 4), ("mhc", 4)]
    # One pass reads the prompts and four give the other tokens; 1 untimed and 3 timed repeats.
    assert order == ((["plain"] * 5 + ["mhc"] * 5) * 4) * 2
    for row in found["rows"]:
        assert 0 < row["prefill_ms"]["p50"] <= row["prefill_ms"]["p95"]
        assert 0 < row["decode_ms"]["p50"] <= row["decode_ms"]["p95"]
        rate = 1000 * row["batch"] / row["decode_ms"]["p50"]
        assert row["decode_tokens_per_s"] == pytest.approx(rate, rel=0.01)
    with pytest.raises(ConfigError, match="smallest context, 128"):
        measure_latency(models, (1,), Load(100, 29), 1)
