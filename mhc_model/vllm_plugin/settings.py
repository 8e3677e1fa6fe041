"""What of vLLM's configuration our models can be served with."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from mhc_model.errors import ConfigError

WORKER = "mhc_model.vllm_plugin.worker.GateWorker"


class MHCGatesSettings(VerifyAndUpdateConfig):
    """vLLM calls this with the configuration of every engine of our architecture."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Refuses what would not be served right, and takes the worker that knows gates.

        Raises:
            ConfigError: naming the option, its value and what is possible.
        """
        _refuse(vllm_config)
        parallel = vllm_config.parallel_config
        if vllm_config.use_v2_model_runner:
            return  # it asks the model (`get_model_state_cls`)
        if not current_platform.is_cpu():
            raise ConfigError(
                "on a GPU gates need vLLM's model runner V2, and this engine takes V1; set "
                "VLLM_USE_V2_MODEL_RUNNER=1"
            )
        if parallel.worker_cls not in ("auto", WORKER):
            raise ConfigError(
                f"worker_cls is {parallel.worker_cls!r}, which knows no gates; leave it out"
            )
        parallel.worker_cls = WORKER


def _refuse(config: VllmConfig) -> None:
    model, parallel = config.model_config, config.parallel_config
    unsupported: tuple[tuple[str, Any, bool, str], ...] = (
        (
            "tensor_parallel_size",
            parallel.tensor_parallel_size,
            parallel.tensor_parallel_size > 1,
            "give 1: several engines serve more requests",
        ),
        (
            "pipeline_parallel_size",
            parallel.pipeline_parallel_size,
            parallel.pipeline_parallel_size > 1,
            "give 1",
        ),
        ("quantization", model.quantization, model.quantization is not None, "leave it out"),
        ("enable_lora", True, config.lora_config is not None, "leave it out"),
        (
            "speculative_config",
            "given",
            config.speculative_config is not None,
            "leave it out",
        ),
        (
            "enable_prompt_embeds",
            True,
            model.enable_prompt_embeds,
            "leave it out: prompts are tokens",
        ),
    )
    for name, value, refused, fix in unsupported:
        if refused:
            raise ConfigError(f"{name} is {value!r}, which models with gates do not have; {fix}")
