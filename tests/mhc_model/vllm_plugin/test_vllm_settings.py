"""What of vLLM's configuration is refused, with which words; and the engine where vLLM is not."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch
from vllm_engines import HAS_VLLM, NEEDS_VLLM

from mhc_model import CheckpointError, ConfigError, EngineError
from mhc_model.engines import load_engine


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed here")
def test_without_vllm_the_configuration_is_refused(checkpoint_of):
    with pytest.raises(ConfigError, match=r"engine is 'vllm', and vLLM is not installed; .*docs"):
        load_engine("vllm", checkpoint_of("limit"))


def test_the_plugin_is_no_part_of_the_package_without_vllm():
    """Nothing but the plugin itself imports vLLM."""
    assert importlib.util.find_spec("mhc_model.vllm_plugin") is not None
    assert load_engine.__module__ == "mhc_model.engines"


@pytest.fixture
def start(checkpoint_of):
    def begin(kind: str = "limit", **arguments):
        from mhc_model.vllm_plugin.engine import start

        defaults = {"kv_cache_memory_bytes": 1 << 22, "enforce_eager": True}
        directory = checkpoint_of(kind)
        return start(directory, dtype=torch.float32, context=160, **{**defaults, **arguments})

    return begin


class TestRefusals:
    pytestmark = NEEDS_VLLM

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"tensor_parallel_size": 2}, "tensor_parallel_size is 2, which models with gates"),
            ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2"),
            ({"enable_lora": True}, "enable_lora is True"),
            ({"worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker"}, "worker_cls is .*no gates"),
            ({"enable_prompt_embeds": True}, "enable_prompt_embeds is True"),
        ],
    )
    def test_what_would_not_be_served_right(self, start, arguments, message):
        with pytest.raises(ConfigError, match=message):
            start(**arguments)

    def test_limits_and_devices(self, checkpoint_of):
        directory = checkpoint_of("limit")
        for options, error, message in (
            ({"max_seq_len": 161}, EngineError, "max_seq_len is 161; it must be 1 to 160"),
            ({"max_batch": 0}, EngineError, "max_batch is 0"),
            ({"device": "cuda"}, ConfigError, "built for 'cpu'"),
            ({"cuda_graphs": True}, EngineError, "cuda_graphs needs a GPU"),
            ({"kv_cache_bytes": 1000, "prefix_cache_bytes": 0}, EngineError, "does not start"),
        ):
            with pytest.raises(error, match=message):
                load_engine("vllm", directory, **options)

    def test_an_altered_checkpoint_is_refused(self, checkpoint_of, tmp_path):
        shutil.copytree(checkpoint_of("limit"), tmp_path / "altered")
        weights = tmp_path / "altered" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        with pytest.raises(CheckpointError, match="was altered"):
            load_engine("vllm", tmp_path / "altered")
