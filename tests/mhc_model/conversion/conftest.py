"""Tiny random models of transformers' own classes, one for each family and variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    NanoChatConfig,
    PreTrainedModel,
    Qwen3Config,
)

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
ROPE = {"rope_type": "default", "rope_theta": 50_000.0}
GPT2_SIZES = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
ENDS = {"bos_token_id": 1, "eos_token_id": 1}

# A large epsilon, as Llama's, and weights small enough that it shows.
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen3": (
        Qwen3Config,
        {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    ),
    "qwen3-untied": (Qwen3Config, {**SIZES, "num_key_value_heads": 1, "head_dim": 8}),
    "llama": (
        LlamaConfig,
        {**SIZES, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_parameters": ROPE},
    ),
    "llama-tied": (LlamaConfig, {**SIZES, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}),
    "nanochat": (NanoChatConfig, {**SIZES, "num_key_value_heads": 2}),
    "nanochat-no-cap": (NanoChatConfig, {**SIZES, "final_logit_softcapping": None}),
    "gpt2": (GPT2Config, {**GPT2_SIZES, **ENDS}),
    "gpt2-untied": (
        GPT2Config,
        {**GPT2_SIZES, **ENDS, "n_inner": 40, "tie_word_embeddings": False},
    ),
}


@torch.no_grad()
def _build(variant: str, seed: int = 0) -> PreTrainedModel:
    kind, values = VARIANTS[variant]
    model = AutoModelForCausalLM.from_config(kind(**values), attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif parameter.ndim == 1:  # norms
            parameter.copy_(1.0 + 0.2 * noise)
        else:
            parameter.copy_((0.05 if "emb" in name or "w" in name[-12:-7] else 0.15) * noise)
    return model.float().eval()


@pytest.fixture(scope="session")
def theirs() -> Callable[..., PreTrainedModel]:
    """`theirs(variant, seed=0)`: a random float32 model of transformers' class."""
    return _build


@pytest.fixture(scope="session", params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    """Every variant in turn."""
    return request.param
