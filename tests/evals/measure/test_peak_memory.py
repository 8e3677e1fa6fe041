"""Peak memory of a process of its own."""

from __future__ import annotations

import json

import pytest
import torch

from evals.measure import MemorySettings, measure_memory
from evals.measure.memory import peak_rss
from mhc_model.errors import EngineError


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
