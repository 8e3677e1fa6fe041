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
        (..., n, m) of the dtype of the logits; doubly stochastic, but for 'free', where the logits
        are the entries.
    """
    n = config.n_streams
    match config.projection:
        case "free":
            return logits.unflatten(-1, (n, n))
        case "kronecker":
            return kronecker(logits / config.tau)
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
        case "free":
            return torch.eye(n).flatten()
        case "kronecker":
            return torch.full((config.n_res_logits,), config.res_diagonal - config.res_off_diagonal)
        case "identity":
            return torch.zeros(0)
        case "permutations":
            res = torch.full((config.n_res_logits,), config.res_off_diagonal)
            res[0] = config.res_diagonal  # the identity comes first
            return res
    res = torch.full((n, n), config.res_off_diagonal)
    return res.fill_diagonal_(config.res_diagonal).reshape(-1)


def kronecker(logits: Tensor) -> Tensor:
    """KromHC (arXiv:2601.21579): U_1 x ... x U_K with U_k = [[a, 1 - a], [1 - a, a]].

    Doubly stochastic by construction. a = sigmoid(logit): the softmax over the two permutations of
    two streams, whose two logits count by their difference only.

    Args:
        logits: (..., K).

    Returns:
        (..., n, n) with n = 2^K; the first factor is that of the halves of the streams.
    """
    # An entry (i, j) is the product of what each binary digit of i and j has: a where the digits
    # are equal, 1 - a where not. So it depends on the exclusive or of i and j alone.
    factors = torch.stack([torch.sigmoid(logits), torch.sigmoid(-logits)], dim=-1)
    entries = torch.ones_like(logits[..., :1])
    for factor in factors.unbind(dim=-2):
        entries = (entries[..., :, None] * factor[..., None, :]).flatten(-2)
    index = torch.arange(entries.shape[-1], device=logits.device)
    return entries[..., index[:, None] ^ index]


@torch.no_grad()
def reset_projections(
    fn: Tensor, scale: Tensor, config: MHCConfig, generator: torch.Generator | None
) -> None:
    """Fills phi (n * c, k) and the strengths (any number of them) with their initial values."""
    if config.projection_std > 0.0:
        fn.normal_(0.0, config.projection_std, generator=generator)
    else:
        fn.zero_()
    scale.fill_(config.initial_scale(len(fn) // config.n_streams))
