"""Inputs of the tests of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from mhc_model import ModelConfig


def draw_tokens(config: ModelConfig, b: int = 2, t: int = 10, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (b, t), generator=generator)


def draw_gates(config: ModelConfig, b: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(b, config.n_gates, generator=torch.Generator().manual_seed(seed))
