"""Latency, memory and the Sinkhorn knob on tiny models."""

from __future__ import annotations

import json

import pytest
import torch

from evals.measure.latency import Load, measure_latency
from evals.measure.memory import MemorySettings, measure_memory, peak_rss
from evals.measure.sinkhorn import projection_errors, with_iterations
from evals.run import main
from evals.settings import EvalSettings
from mhc_model import Decoder
from mhc_model.errors import ConfigError, EngineError
from mhc_model.settings import validate_settings


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


def test_peak_memory_is_that_of_a_process_of_its_own(checkpoints):
    held = torch.ones(64 << 20)  # 256 MB here must not count there
    own = peak_rss()
    found = measure_memory(
        MemorySettings(checkpoint=str(checkpoints[0] / "mhc"), batch=2, device="cpu")
    )
    assert held.sum() > 0
    assert found["rss_before_loading_bytes"] < own - (150 << 20)
    assert found["rss_before_loading_bytes"] <= found["peak_rss_bytes"] < own
    parameters = json.loads((checkpoints[0] / "mhc" / "config.json").read_text())
    assert parameters["vocab_size"] * 32 * 4 * 2 < found["weights_bytes"] < 1 << 20
    with pytest.raises(EngineError, match="nowhere is not a directory"):
        measure_memory(MemorySettings(checkpoint="nowhere"))


def test_iterations_replace_the_limit_and_share_the_weights(make_model, tiny_model):
    model = make_model()
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        exact = model(tokens)
        gaps, errors = [], []
        for iterations in (1, 3, 200):
            copy = with_iterations(model, iterations)
            assert copy.head.weight.data_ptr() == model.head.weight.data_ptr()
            gaps.append(float((copy(tokens) - exact).abs().max()))
            errors.append(projection_errors(copy, [list(range(40))])["row_error"])
    assert gaps[0] > gaps[1] > gaps[2]
    assert errors[0] > errors[1] > errors[2]
    assert gaps[2] < 1e-3
    assert projection_errors(model, [list(range(40))])["row_error"] < 1e-5
    with pytest.raises(ConfigError, match="plain"):
        with_iterations(make_model(mhc=False), 3)
    lite = Decoder(tiny_model(mhc={"projection": "permutations"}).config)
    with pytest.raises(ConfigError, match="mixture of permutations"):
        with_iterations(lite, 3)


def test_the_command_measures_and_keeps_scores_apart(checkpoints, tmp_path, capsys):
    line = [
        *("--checkpoint", str(checkpoints[0] / "mhc"), "--out", str(tmp_path / "out")),
        *("--against", str(checkpoints[0] / "plain"), "--limit", "4", "--max-tokens", "4"),
        *("--tasks", "gsm8k", "bpb", "latency", "memory", "sinkhorn", "--device", "cpu"),
        *("--sinkhorn-iterations", "20", "1", "--latency.batches", "1", "2"),
        *("--latency.repeats", "2", "--latency.prompt-tokens", "8", "--latency.new-tokens", "3"),
    ]
    assert main(line) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["tasks"]) == ["gsm8k", "bpb"]
    assert list(results["sinkhorn"]) == ["20", "1"]
    errors = [entry["row_error"] for entry in results["sinkhorn"].values()]
    assert errors[0] < errors[1]
    bits = {results["tasks"]["bpb"]["bits_per_byte"]}
    bits |= {entry["tasks"]["bpb"]["bits_per_byte"] for entry in results["sinkhorn"].values()}
    assert len(bits) == 3
    models = [row["model"] for row in results["measured"]["latency"]["rows"]]
    assert len(models) == 2 * (2 + 2)
    assert set(results["measured"]["memory"]) == {line[1], str(checkpoints[0] / "plain")}
    printed = capsys.readouterr().out
    assert "1 iterations" in printed
    assert "decode ms p50 / p95" in printed
    assert "peak MB" in printed
    samples = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    suffixes = ("", "@sinkhorn-20", "@sinkhorn-1")
    names = {f"{task}{suffix}" for task in ("gsm8k", "bpb") for suffix in suffixes}
    assert {json.loads(row)["task"] for row in samples} == names


def test_the_knob_needs_something_to_score():
    with pytest.raises(ConfigError, match="sinkhorn needs a task to score"):
        validate_settings(EvalSettings, {"checkpoint": "x", "out": "y", "tasks": "sinkhorn"}, "t")
