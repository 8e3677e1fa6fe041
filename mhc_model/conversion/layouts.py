"""How another model's tensor holds ours, bit for bit in both directions.

Axes: h head, d head dim, c channel, m the width that a matrix gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mhc_model.config import ModelConfig


@dataclass(frozen=True)
class Layout:
    """Their one tensor as ours, and back.

    Attributes:
        split: their tensor -> our tensors, one for each name of the rule.
        join: our tensors -> their tensor; undoes `split`.
    """

    split: Callable[[Tensor, ModelConfig], tuple[Tensor, ...]]
    join: Callable[[tuple[Tensor, ...], ModelConfig], Tensor]


def _swap_halves(tensors: tuple[Tensor, ...], config: ModelConfig) -> Tensor:
    heads = tensors[0].unflatten(0, (-1, 2, config.head_dim // 2))
    return heads.flip(1).flatten(0, 2)


SAME = Layout(split=lambda tensor, _: (tensor,), join=lambda tensors, _: tensors[0])

# A matrix as (c, m) where ours is (m, c): OpenAI's GPT-2.
TRANSPOSED = Layout(
    split=lambda tensor, _: (tensor.mT.contiguous(),),
    join=lambda tensors, _: tensors[0].mT.contiguous(),
)

# Queries, keys and values side by side in one matrix (c, 3 m), and their biases (3 m,).
FUSED_TRANSPOSED = Layout(
    split=lambda tensor, _: tuple(part.contiguous() for part in tensor.mT.chunk(3)),
    join=lambda tensors, _: torch.cat(tensors).mT.contiguous(),
)
FUSED = Layout(
    split=lambda tensor, _: tuple(part.contiguous() for part in tensor.chunk(3)),
    join=lambda tensors, _: torch.cat(tensors),
)

# nanochat turns queries and keys the other way round. Swapping the two halves of each head swaps
# the direction, and the product of a query and a key does not see the order of the channels.
SWAPPED_HALVES = Layout(
    split=lambda tensor, config: (_swap_halves((tensor,), config),),
    join=_swap_halves,
)
