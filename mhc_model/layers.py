"""The two sublayers of the decoder and what they share.

Axes: b batch, t token, s attended position, c channel, h head, d head dim.
"""

from __future__ import annotations

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

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x: (b, t, c) -> (b, t, c). With a cache, `positions` (b, t) and `mask` (b, 1, t, s)."""
        d = self.config.head_dim
        q = rearrange(self.q_proj(x), "b t (h d) -> b h t d", d=d)
        k = rearrange(self.k_proj(x), "b t (h d) -> b h t d", d=d)
        v = rearrange(self.v_proj(x), "b t (h d) -> b h t d", d=d)
        q = rms_norm(apply_rope(q, *rope), self.config.norm_eps)
        k = rms_norm(apply_rope(k, *rope), self.config.norm_eps)
        if cache is not None and positions is not None:
            k, v = cache.write(self.layer, positions, k, v)
            k, v = k.to(q.dtype), v.to(q.dtype)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
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
