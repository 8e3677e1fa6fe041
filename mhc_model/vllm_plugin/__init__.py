"""Our models in vLLM, with gates for each request.

vLLM loads this through the entry point `vllm.general_plugins` in each of its processes, and takes a
checkpoint directory of ours as it is:

    vllm serve runs/demo/mhc --dtype float32
    LLM("runs/demo/mhc", dtype="float32")

A request's gates are `SamplingParams(extra_args={"gates": ...})`, over HTTP
`"vllm_xargs": {"gates": ...}`: what `expand_gates` takes; without them the learned gates.

    admission.py    checks a request's gates, and gives them their part of the prefix cache
    settings.py     what of vLLM's configuration we serve, and the worker that brings gates
    model.py        the decoder around vLLM's attention
    worker.py       gates on their way into a forward pass: the runner V1, on a CPU
    model_state.py  the same for the runner V2, on a GPU
    sampling.py     a sample's parameters in vLLM's terms
    engine.py       `VLLMEngine`, the interface of `mhc_model.Engine`

Only `register` and `engine` are for others. May import vLLM, and of ours the ground, decoder,
checkpoint, engine and huggingface. docs/vllm.md has the rest.
"""

from __future__ import annotations

__all__ = ["ARCHITECTURE", "register"]

ARCHITECTURE = "MHCGatesForCausalLM"


def register() -> None:
    """Tells vLLM of our architecture; may be called again."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from mhc_model.checkpoint import MODEL_TYPE
    from mhc_model.huggingface import MHCGatesConfig
    from mhc_model.vllm_plugin.admission import install
    from mhc_model.vllm_plugin.settings import MHCGatesSettings

    AutoConfig.register(MODEL_TYPE, MHCGatesConfig, exist_ok=True)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "mhc_model.vllm_plugin.model:MHCGatesForVLLM")
    MODELS_CONFIG_MAP[ARCHITECTURE] = MHCGatesSettings
    install()
