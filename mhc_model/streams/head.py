"""The learned collapse: how n streams become one after the last layer.

    y = sum_i sigmoid(s x~ phi + b)_i x_i,   x~ = RMSNorm(vec(x))

As DeepSeek-V4's, whose names the parameters have. Axes: n streams, c channel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mhc_model.config import MHCConfig
from mhc_model.streams import kernels
from mhc_model.streams.projections import reset_projections


class StreamHead(nn.Module):
    """Weights of the streams of each token, and their sum; parameters stay float32.

    `fn` (n * c, n), `base` (n,) and `scale` (1,); the static form has `base` alone.
    """

    fn: nn.Parameter | None
    scale: nn.Parameter | None

    def __init__(self, config: MHCConfig, d_model: int, norm_eps: float) -> None:
        """Parameters at their initial values: streams of width `d_model` have equal weights."""
        super().__init__()
        self.config = config
        self.norm_eps = norm_eps
        n = config.n_streams
        self.fn = self.scale = None
        if config.dynamic:
            self.fn = nn.Parameter(torch.empty(n * d_model, n))
        self.base = nn.Parameter(torch.empty(n))
        if config.dynamic:
            self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initial values; only `fn` can be random."""
        self.base.copy_(self.initial_base().to(self.base.device))
        if self.fn is not None and self.scale is not None:
            reset_projections(self.fn, self.scale, self.config, generator)

    def initial_base(self) -> Tensor:
        """(n,) float32, with which the sum is the mean: sigmoid(-log(n - 1)) = 1 / n."""
        n = self.config.n_streams
        return torch.full((n,), -math.log(n - 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., n, c) streams -> (..., c) of their dtype."""
        with torch.autocast(x.device.type, enabled=False):
            flat, base = x.reshape(-1, *x.shape[-2:]), kernels.precise(self.base)
            if self.fn is None or self.scale is None:
                raw = base.expand(len(flat), -1)
            else:
                projected = kernels.project(flat, kernels.precise(self.fn), self.norm_eps)
                raw = torch.addcmul(base, projected, kernels.precise(self.scale))
            return kernels.read(flat, torch.sigmoid(raw)).view(*x.shape[:-2], x.shape[-1])
