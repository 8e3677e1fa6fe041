"""Manifold-constrained hyper-connections around one sublayer (arXiv:2512.24880, section 4).

Per token, with x~ = RMSNorm(vec(x)) over all n * c channels:

    H_pre  =     sigmoid(s_pre  x~ phi_pre  + b_pre)        (n,)   in [0, 1]
    H_post = 2 * sigmoid(s_post x~ phi_post + b_post)       (n,)   in [0, 2]
    H_res  = sinkhorn_knopp((s_res x~ phi_res + b_res) / tau)      (n, n) doubly stochastic
    y      = F(norm(sum_i H_pre_i x_i))
    x_j   <- sum_i ((1 - g) I + g H_res)_ij x_i + H_post_j y

Orientation: H_res[i, j] is what stream i sends to stream j.
Axes: b batch, t token, n streams (senders), m streams (receivers), c channel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from mhc_model.config import MHCConfig
from mhc_model.sinkhorn import sinkhorn_knopp


class Coefficients(NamedTuple):
    """What one sublayer does with the streams of each token, all float32."""

    pre: Tensor  # (b, t, n)
    post: Tensor  # (b, t, n)
    res: Tensor  # (b, t, n, m), doubly stochastic, before the gate


class HyperConnection(nn.Module):
    """The mHC coefficients of one sublayer and their use on the streams.

    Parameters carry the names of DeepSeek-V4's published modules and stay float32:
    `fn` (n * c, 2n + n * n) holds phi_pre, phi_post and phi_res side by side, `base` the biases in
    the same order, `scale` (3,) the strengths s_pre, s_post, s_res.
    """

    def __init__(self, config: MHCConfig, d_model: int, sublayer: int, norm_eps: float) -> None:
        super().__init__()
        n = config.n_streams
        self.config = config
        self.sublayer = sublayer
        self.norm_eps = norm_eps
        self.fn = nn.Parameter(torch.empty(n * d_model, 2 * n + n * n))
        self.base = nn.Parameter(torch.empty(2 * n + n * n))
        self.scale = nn.Parameter(torch.empty(3))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initial values of the preset; only `fn` can be random."""
        if self.config.projection_std > 0.0:
            self.fn.normal_(0.0, self.config.projection_std, generator=generator)
        else:
            self.fn.zero_()
        self.base.copy_(self.initial_base().to(self.base.device))
        self.scale.fill_(self.config.scale_init)

    def initial_base(self) -> Tensor:
        """(2n + n * n,) float32: b_pre, b_post and b_res at init."""
        config, n = self.config, self.config.n_streams
        # H_pre prefers another stream in each sublayer: with equal H_pre and equal streams nothing
        # would ever tell the streams apart, and no gradient would reach H_res.
        pre = torch.full((n,), -config.pre_contrast)
        pre[self.sublayer % n] = config.pre_contrast
        post = torch.zeros(n)  # 2 * sigmoid(0) = 1
        res = config.res_diagonal * torch.eye(n)
        return torch.cat([pre, post, res.reshape(-1)])

    @torch.no_grad()
    def initial_res(self) -> Tensor:
        """(n, n) float32: H_res at init where the projections are zero."""
        n = self.config.n_streams
        logits = self.initial_base()[2 * n :].reshape(n, n)
        return sinkhorn_knopp(logits, self.config.sinkhorn_iters, self.config.tau)

    def forward(self, x: Tensor) -> Coefficients:
        """Coefficients of every token.

        Args:
            x: (b, t, n, c) streams, any floating dtype; the computation is float32 throughout.
        """
        n = self.config.n_streams
        with torch.autocast(x.device.type, enabled=False):
            flat = rearrange(x, "b t n c -> b t (n c)").float()
            # RMSNorm has no weight here, so it commutes with the projection: scale the 2n + n * n
            # results instead of the n * c inputs.
            rms = flat.square().mean(dim=-1, keepdim=True).add(self.norm_eps).rsqrt()
            sizes = (n, n, n * n)
            # Expanded views: repeat_interleave would wait for the device to learn the sizes.
            strength = torch.cat([s.expand(k) for s, k in zip(self.scale, sizes, strict=True)])
            raw = (flat @ self.fn.float()) * rms * strength + self.base
            pre, post, res = raw.split(sizes, dim=-1)
            logits = rearrange(res, "b t (n m) -> b t n m", n=n)
            return Coefficients(
                pre=torch.sigmoid(pre),
                post=2.0 * torch.sigmoid(post),
                res=sinkhorn_knopp(logits, self.config.sinkhorn_iters, self.config.tau),
            )

    def pre(self, x: Tensor, coefficients: Coefficients) -> Tensor:
        """The sublayer's input: (b, t, n, c) streams -> (b, t, c)."""
        weights = coefficients.pre.to(x.dtype)
        # n scaled additions: a batched product of (1, n) by (n, c) matrices is 4 times slower on
        # the CPU, forward and backward; unbind, since its gradient is one stack.
        pairs = zip(weights.unbind(-1), x.unbind(-2), strict=True)
        first, *others = (weight[..., None] * stream for weight, stream in pairs)
        return sum(others, start=first)

    def post(self, x: Tensor, y: Tensor, coefficients: Coefficients, gate: Tensor) -> Tensor:
        """The streams after the sublayer.

        Args:
            x: (b, t, n, c) streams before the sublayer.
            y: (b, t, c) output of the sublayer.
            coefficients: of the same tokens.
            gate: (b,) in [0, 1]; 0 gives exactly the identity mixing.

        Returns:
            (b, t, n, c), dtype of x.
        """
        mixing = gated(coefficients.res, gate).to(x.dtype)
        mixed = einsum(mixing, x, "b t n m, b t n c -> b t m c")
        added = einsum(coefficients.post.to(x.dtype), y.to(x.dtype), "b t m, b t c -> b t m c")
        return mixed + added


def gated(res: Tensor, gate: Tensor) -> Tensor:
    """(1 - g) I + g H_res for res (b, t, n, m) and gate (b,); exactly I where g = 0."""
    g = rearrange(gate.to(res.dtype), "b -> b 1 1 1")
    identity = torch.eye(res.shape[-1], dtype=res.dtype, device=res.device)
    return (1.0 - g) * identity + g * res
