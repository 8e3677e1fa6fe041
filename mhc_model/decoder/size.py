"""How large a model is, and what a token costs in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mhc_model.config import ModelConfig


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters())


def estimate_flops(model: nn.Module, config: ModelConfig, context: int | None = None) -> int:
    """FLOPs per token of forward and backward (PaLM, arXiv:2204.02311, B).

    6 for each weight of a matrix product, 12 L h d T for attention; look-ups are free. The
    streams' own mixing adds 6 (n * n + 2 n) c per sublayer, 6 * 2 n c where H_res is I.

    Args:
        model: a decoder, which may be on the meta device.
        config: the model's.
        context: T, tokens of a sequence; None is the model's whole context.
    """
    context = config.max_seq_len if context is None else context
    matrices = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and not name.endswith(("embedding.weight", "stream_embedding"))
    )
    matrices += config.vocab_size * config.d_model if config.tied else 0
    attention = 12 * config.n_layers * config.n_heads * config.head_dim * context
    mixing = 0
    if config.mhc is not None:
        n = config.mhc.n_streams
        weights = 2 * n + (n * n if config.mhc.mixes else 0)
        mixing = 6 * 2 * config.n_layers * weights * config.d_model
    return 6 * matrices + attention + mixing


def describe(
    build: Callable[..., nn.Module], config: ModelConfig, context: int | None = None
) -> str:
    """The size of a model in words, without its memory.

    Args:
        build: `Decoder`; it is called as build(config, seed=None), on the meta device.
        config: of the model.
        context: as in `estimate_flops`.
    """
    with torch.device("meta"):
        model = build(config, seed=None)
        plain = build(config.model_copy(update={"mhc": None}), seed=None)
    count = count_parameters(model)
    streams = f" ({count - count_parameters(plain):,} of them for the streams)"
    text = f"{count:,} parameters{'' if config.mhc is None else streams}"
    return f"{text}, {estimate_flops(model, config, context):,} FLOPs per token"
