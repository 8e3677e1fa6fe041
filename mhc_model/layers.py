"""The two sublayers of the decoder and what they share.

Axes: b batch, t token, s attended position, c channel, h head, d head dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mhc_model.cache import KVCache
from mhc_model.config import ModelConfig


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without weight over the last axis."""
    return F.rms_norm(x, (x.shape[-1],), eps=eps)


def rope_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, each (max_seq_len, d / 2) float32."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.max_seq_len).float(), config.rope_base**-half)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of each head: x (b, h, t, d), cos and sin (b or 1, 1, t, d / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Attend(NamedTuple):
    """Where the tokens of a forward pass stand, and what they may look at."""

    cos: Tensor  # (b or 1, 1, t, d / 2)
    sin: Tensor
    cache: KVCache | None = None
    positions: Tensor | None = None  # (b, t), with a cache
    mask: Tensor | None = None  # (b, 1, t, s), True is seen; None is causal, nothing came before


class Attention(nn.Module):
    """Causal self-attention: rotary positions, then RMSNorm on queries and keys, no bias."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        width, kv_width = config.d_model, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """x: (b, t, c) -> (b, t, c)."""
        d = self.config.head_dim
        q = rearrange(self.q_proj(x), "b t (h d) -> b h t d", d=d)
        k = rearrange(self.k_proj(x), "b t (h d) -> b h t d", d=d)
        v = rearrange(self.v_proj(x), "b t (h d) -> b h t d", d=d)
        q = rms_norm(apply_rope(q, attend.cos, attend.sin), self.config.norm_eps)
        k = rms_norm(apply_rope(k, attend.cos, attend.sin), self.config.norm_eps)
        if attend.cache is not None and attend.positions is not None:
            attend.cache.write(self.layer, attend.positions, k, v)
            if attend.mask is not None:
                seen = attend.cache.read(self.layer, attend.mask.shape[-1])
                k, v = (each.to(q.dtype) for each in seen)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attend.mask,
            is_causal=attend.mask is None,
            enable_gqa=self.config.kv_heads != self.config.n_heads,
        )
        return self.o_proj(rearrange(y, "b h t d -> b t (h d)"))


class MLP(nn.Module):
    """Two matrices with relu squared between them, no bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.d_model
        self.up_proj = nn.Linear(config.d_model, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, t, c) -> (b, t, c)."""
        return self.down_proj(F.relu(self.up_proj(x)).square())
