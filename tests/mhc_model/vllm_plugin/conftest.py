"""Engines of vLLM over tiny checkpoints: one a configuration, shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_engines import vllm_engines

from mhc_model import Decoder, save_checkpoint
from mhc_model.gates import resolve_gates

CONTEXT = 160
KINDS: dict[str, dict[str, Any]] = {
    "limit": {"behaviours": {"direct": {"gates": [0.0, 0.3]}}},
    "lite": {"mhc": {"projection": "permutations"}},
    "iterations": {"mhc": {"projection": "iterations", "sinkhorn_iters": 5}},
    "identity": {"mhc": {"projection": "identity", "collapse": "learned"}},
    "accepting": {"mhc": {"projection": "identity", "gates": "accept"}},
    "kronecker": {"mhc": {"projection": "kronecker", "collapse": "learned"}},
    "free": {"mhc": {"projection": "free", "single_pass": True, "collapse": "learned"}},
    "single_pass": {"mhc": {"single_pass": True}},
    "static": {"mhc": {"dynamic": False}},
    "plain": {"plain": True},
    "llama": {
        "norm": "rms_weight",
        "mlp": "swiglu",
        "n_kv_heads": 2,
        "qk_norm": "none",
        "embedding_norm": False,
        "softcap": None,
        "tied": True,
    },
    "qwen3": {
        "norm": "rms_weight",
        "mlp": "swiglu",
        "n_kv_heads": 2,
        "d_head": 32,
        "qk_norm": "rms_weight",
        "embedding_norm": False,
        "softcap": None,
        "tied": True,
    },
    "gpt2": {
        "norm": "layer",
        "mlp": "gelu",
        "biases": True,
        "positions": "learned",
        "qk_norm": "none",
        "embedding_norm": False,
        "softcap": None,
        "tied": True,
    },
}


@pytest.fixture(scope="session")
def model_of(tiny_model) -> Callable[[str], Decoder]:
    """`model_of(kind)`: a randomised decoder of one of KINDS."""

    @cache
    def build(kind: str) -> Decoder:
        return tiny_model(max_seq_len=CONTEXT, **KINDS[kind])

    return build


@pytest.fixture(scope="session")
def checkpoint_of(model_of, tmp_path_factory) -> Callable[[str], Path]:
    """`checkpoint_of(kind)`: the same, saved without a tokenizer."""

    @cache
    def save(kind: str) -> Path:
        directory = tmp_path_factory.mktemp("vllm") / kind
        save_checkpoint(directory, model_of(kind))
        return directory

    return save


@pytest.fixture
def engine_of(checkpoint_of) -> Callable[..., Any]:
    """`engine_of(kind, **options of VLLMEngine.from_checkpoint)`: idle, its prefix cache empty."""

    def get(kind: str, **options: Any) -> Any:
        return vllm_engines.take(checkpoint_of(kind), **options)

    return get


@torch.no_grad()
def _reference(model: Decoder, prompt: list[int], gates: Any, max_tokens: int):
    tokens, logprobs = list(prompt), []
    phases = resolve_gates(gates, model.config)
    for _ in range(max_tokens):
        counts = (len(prompt), len(tokens) - len(prompt))
        rows = None
        if model.config.gateless is None:
            learned = model.learned_gates()
            each = zip((learned if row is None else row for row in phases), counts, strict=True)
            rows = torch.cat([row.expand(count, -1) for row, count in each])[None]
        scores = model(torch.tensor([tokens]), rows)[0, -1].log_softmax(dim=-1)
        tokens.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return tuple(tokens[len(prompt) :]), logprobs


@pytest.fixture(scope="session")
def reference() -> Callable[..., tuple[tuple[int, ...], list[float]]]:
    """`reference(model, prompt, gates, max_tokens)`: greedy, a whole forward pass a token,
    each token under the gates of its phase."""
    return _reference
