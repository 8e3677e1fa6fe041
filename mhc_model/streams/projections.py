"""From logits to H_res: one function for every value of `MHCConfig.projection`.

Axes: n streams (senders), m streams (receivers); `...` are tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mhc_model.config import MHCConfig
from mhc_model.streams.sinkhorn import permutation_mixture, sinkhorn_knopp


def project(logits: Tensor, config: MHCConfig) -> Tensor:
    """H_res before the gate.

    Args:
        logits: (..., config.n_res_logits), float32 or float64.
        config: projection, temperature, number of streams.

    Returns:
        (..., n, m) of the dtype of the logits; doubly stochastic.
    """
    n = config.n_streams
    match config.projection:
        case "identity":
            identity = torch.eye(n, dtype=logits.dtype, device=logits.device)
            return identity.expand(*logits.shape[:-1], n, n)
        case "permutations":
            return permutation_mixture(logits / config.tau, n)
    matrices, exact = logits.unflatten(-1, (n, n)), config.projection == "limit"
    return sinkhorn_knopp(matrices, config.sinkhorn_iters, config.tau, exact)


def initial_logits(config: MHCConfig) -> Tensor:
    """(config.n_res_logits,) float32: b_res at init."""
    n = config.n_streams
    match config.projection:
        case "identity":
            return torch.zeros(0)
        case "permutations":
            res = torch.full((config.n_res_logits,), config.res_off_diagonal)
            res[0] = config.res_diagonal  # the identity comes first
            return res
    res = torch.full((n, n), config.res_off_diagonal)
    return res.fill_diagonal_(config.res_diagonal).reshape(-1)
