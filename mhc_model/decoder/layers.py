"""A layer of the decoder: its two sublayers and what they share.

Axes: b batch, t token, s attended position, c channel, h head, d head dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mhc_model.config import ModelConfig
from mhc_model.decoder.cache import KVCache
from mhc_model.streams import HyperConnection


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without weight over the last axis."""
    return F.rms_norm(x, (x.shape[-1],), eps=eps)


class Norm(nn.Module):
    """The norm over the last axis that `ModelConfig.norm` names; without parameters for "rms"."""

    def __init__(self, kind: str, width: int, eps: float) -> None:
        super().__init__()
        self.kind = kind
        self.eps = eps
        if kind != "rms":
            self.weight = nn.Parameter(torch.ones(width))
        if kind == "layer":
            self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, is_rms: bool = False) -> Tensor:
        """x: (..., c) -> (..., c) of its dtype.

        Args:
            x: what to normalise.
            is_rms: x has gone through an RMSNorm without weight, where that is a part of this norm.
        """
        if self.kind == "layer":
            weight, bias = self.weight.float(), self.bias.float()
            return F.layer_norm(x.float(), weight.shape, weight, bias, self.eps).to(x.dtype)
        x = x if is_rms else rms_norm(x, self.eps)
        return x if self.kind == "rms" else (x * self.weight).to(x.dtype)


def rope_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, each (max_seq_len, d / 2) float32."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    # The reciprocal of the power, as everyone computes it: a last bit is 1e-3 at position 8192.
    frequencies = 1.0 / config.rope_base**half
    angles = torch.outer(torch.arange(config.max_seq_len).float(), frequencies)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of each head: x (b, h, t, d), cos and sin (b or 1, 1, t, d / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Attend(NamedTuple):
    """Where the tokens of a forward pass stand, and what they may look at."""

    cos: Tensor | None  # (b or 1, 1, t, d / 2); None where positions are not rotary
    sin: Tensor | None
    cache: KVCache | None = None
    positions: Tensor | None = None  # (b, t), with a cache
    mask: Tensor | None = None  # (b, 1, t, s), True is seen; None is causal, nothing came before
    paged: bool = False  # vLLM holds keys and values, and knows whose tokens these are
    weights: dict[int, Tensor] | None = None  # each layer leaves (b, h, t, s) here, if asked to


class Attention(nn.Module):
    """Causal self-attention: grouped heads, rotary positions, RMSNorm on queries and keys."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        width, kv_width = (n * config.head_dim for n in (config.n_heads, config.kv_heads))
        self.q_proj = nn.Linear(config.d_model, width, bias=config.biases)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=config.biases)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=config.biases)
        self.o_proj = nn.Linear(width, config.d_model, bias=config.biases)
        if config.qk_norm != "none":
            self.q_norm = Norm(config.qk_norm, config.head_dim, config.norm_eps)
            self.k_norm = Norm(config.qk_norm, config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """x: (b, t, c) -> (b, t, c)."""
        d = self.config.head_dim
        q = rearrange(self.q_proj(x), "b t (h d) -> b h t d", d=d)
        k = rearrange(self.k_proj(x), "b t (h d) -> b h t d", d=d)
        v = rearrange(self.v_proj(x), "b t (h d) -> b h t d", d=d)
        q, k = self._turn(q, k, attend)
        y = self.look(q, k, v, attend)
        return self.o_proj(rearrange(y, "b h t d -> b t (h d)"))

    def look(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """What each head sees: queries (b, h, t, d), keys and values with kv_heads -> (b, h, t, d).

        vLLM's plugin replaces this, and nothing else of the decoder.
        """
        if attend.cache is not None and attend.positions is not None:
            attend.cache.write(self.layer, attend.positions, k, v)
            if attend.mask is not None:
                seen = attend.cache.read(self.layer, attend.mask.shape[-1])
                k, v = (each.to(q.dtype) for each in seen)
        if attend.weights is not None:
            attend.weights[self.layer] = weights = self._weights(q, k, attend.mask)
            return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attend.mask,
            is_causal=attend.mask is None,
            enable_gqa=self.config.kv_heads != self.config.n_heads,
        )

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """(b, h, t, s): how much each query takes of each value."""
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        return scores.masked_fill(~mask, -math.inf).softmax(dim=-1, dtype=torch.float32).to(q.dtype)

    def _turn(self, q: Tensor, k: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """Queries and keys (b, h, t, d), normalised and rotated as the configuration says."""
        # A norm without weight and a rotation can be swapped; nanochat rotates first.
        if self.config.qk_norm == "rms_weight":
            q, k = self.q_norm(q), self.k_norm(k)
        if attend.cos is not None and attend.sin is not None:
            q, k = apply_rope(q, attend.cos, attend.sin), apply_rope(k, attend.cos, attend.sin)
        if self.config.qk_norm == "rms":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k


class MLP(nn.Module):
    """Two matrices with relu squared or GELU between them, or three for SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        if config.mlp == "swiglu":
            self.gate_proj = nn.Linear(config.d_model, config.mlp_width, bias=config.biases)
        self.up_proj = nn.Linear(config.d_model, config.mlp_width, bias=config.biases)
        self.down_proj = nn.Linear(config.mlp_width, config.d_model, bias=config.biases)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, t, c) -> (b, t, c)."""
        up = self.up_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(x)) * up)
        if self.kind == "gelu":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        return self.down_proj(F.relu(up).square())


class Layer(nn.Module):
    """One attention and one mlp sublayer, each with its own hyper-connection if there is mHC."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.index = index
        self.attention_norm = Norm(config.norm, config.d_model, config.norm_eps)
        self.attention = Attention(config, index)
        self.mlp_norm = Norm(config.norm, config.d_model, config.norm_eps)
        self.mlp = MLP(config)
        if config.mhc is not None:
            first, is_rms = 2 * index, config.norm != "layer"
            self.attention_connection = HyperConnection(
                config.mhc, config.d_model, first, config.norm_eps, is_rms
            )
            self.mlp_connection = HyperConnection(
                config.mhc, config.d_model, first + 1, config.norm_eps, is_rms
            )
