"""Doubly stochastic matrices from logits: Sinkhorn-Knopp, then an exact closing step.

Sinkhorn-Knopp alone converges slowly near a permutation: for logits 4 I + N(0, 1) twenty iterations
leave row sums up to 3e-2 away from one, and the product over many sublayers drifts. The closing
step of Altschuler, Weed and Rigollet (arXiv:1705.09634, algorithm 2) puts the result on the
Birkhoff polytope up to rounding error: scale down the rows that are too heavy, then the columns,
then return the missing mass as one non-negative rank-one term.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def sinkhorn_knopp(logits: Tensor, iters: int = 20, tau: float = 1.0, exact: bool = True) -> Tensor:
    """Maps logits to doubly stochastic matrices, in fp32 (fp64 stays fp64).

    Args:
        logits: (..., n, n), any leading shape and floating dtype, finite, of any range.
        iters: iterations; each scales the rows and then the columns.
        tau: temperature; the logits are divided by it.
        exact: close with the rounding step; without it, this is plain Sinkhorn-Knopp, whose
            columns sum to one and whose rows do so only in the limit.

    Returns:
        (..., n, n), float32 or float64, entries >= 0. With `exact`, rows and columns sum to one to
        about 1e-6; gradients are exact for what is computed.

    Raises:
        ValueError: if the last two dimensions differ, or iters or tau are not positive.
    """
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2]:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; expected (..., n, n)")
    if iters < 1 or not tau > 0:
        raise ValueError(f"iters is {iters} and tau is {tau}; both must be positive")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    # Rows and columns go in front: with tokens innermost every step is one vectorised pass over
    # long contiguous runs instead of reductions over n numbers.
    log_p = logits.to(dtype).movedim((-2, -1), (0, 1)).contiguous() / tau
    # The first iteration needs logarithms: it takes any range of logits. After it every row and
    # column sum stays within [1/n, n], so the others cannot over- or underflow and need no exp.
    # The floor bounds how much an entry can still grow, and with it the gradient on the way back:
    # without it, logits of +-200 and a hundred iterations give inf * 0 there.
    log_p = log_p - torch.logsumexp(log_p, dim=1, keepdim=True)
    log_p = log_p - torch.logsumexp(log_p, dim=0, keepdim=True)
    p = _Scaling.apply(log_p.clamp(min=-60.0).exp(), iters - 1)
    if exact:
        p = _round_to_birkhoff(p)
    return p.movedim((0, 1), (-2, -1))


class _Scaling(torch.autograd.Function):
    """`iters` times: divide the rows by their sums, then the columns by theirs.

    Saves its input only. The backward pass does the iterations again and goes back through them;
    recorded by autograd they would cost several times the operations and 2 * iters matrices.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, iters: int) -> Tensor:
        ctx.save_for_backward(p)
        ctx.iters = iters
        for dim in (1, 0) * iters:
            p = p / p.sum(dim=dim, keepdim=True)
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        steps = []
        for dim in (1, 0) * ctx.iters:
            total = p.sum(dim=dim, keepdim=True)
            p = p / total
            steps.append((dim, total, p))
        # With q = p / s and s = sum(p): dL/dp = (dL/dq - sum(dL/dq * q)) / s.
        for dim, total, p in reversed(steps):
            grad = (grad - (grad * p).sum(dim=dim, keepdim=True)) / total
        return grad, None


def _round_to_birkhoff(p: Tensor) -> Tensor:
    """Nearest-mass rounding of p: (n, n, ...) >= 0 onto the doubly stochastic matrices."""
    p = p * p.sum(dim=1, keepdim=True).reciprocal().clamp(max=1.0)
    p = p * p.sum(dim=0, keepdim=True).reciprocal().clamp(max=1.0)
    row_gap = (1.0 - p.sum(dim=1, keepdim=True)).clamp(min=0.0)
    column_gap = (1.0 - p.sum(dim=0, keepdim=True)).clamp(min=0.0)
    # Both gaps hold the same mass up to rounding. In a converged matrix rounding is all there is:
    # the floor keeps the quotient and its gradient of order one.
    mass = row_gap.sum(dim=0, keepdim=True).clamp(min=torch.finfo(p.dtype).eps)
    return p + row_gap * (column_gap / mass)


def doubly_stochastic_error(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Largest distance of a row sum and of a column sum from one.

    Args:
        matrices: (..., n, n).

    Returns:
        Two (...) tensors: row error and column error.
    """
    rows = (matrices.sum(dim=-1) - 1.0).abs().amax(dim=-1)
    columns = (matrices.sum(dim=-2) - 1.0).abs().amax(dim=-1)
    return rows, columns
