"""H_res as the Triton kernels make it: the limit of Sinkhorn-Knopp and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_cases import fused_enter, interpreted, plain_enter

from mhc_model.streams import doubly_stochastic_error


def limit_of(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H_res that the kernel makes of (N, 4, 4) logits, the float64 limit, and both gradients."""
    pairs = []
    for operation in (fused_enter, plain_enter):
        # One token a matrix; the 16 channels of its first stream are the logits. The norm would
        # take their scale away: an eps far above them makes it the same for all tokens.
        leaf = logits.reshape(1, -1, 16).clone().requires_grad_()
        x = torch.zeros(1, leaf.shape[1], 4, 16)
        x[:, :, 0] = leaf
        rms = x.detach().flatten(2).square().mean(dim=-1, keepdim=True).sqrt()
        fn = torch.zeros(64, 24)
        fn[:16, 8:] = torch.eye(16)
        big = float(rms.max()) * 1e6
        res = operation(x, fn, torch.zeros(24), torch.full((24,), big), big**2, 1.0)[3]
        weights = torch.randn(res.shape, generator=torch.Generator().manual_seed(1))
        (grad,) = torch.autograd.grad((res.double() * weights).sum(), leaf)
        pairs.append((res[0].detach(), grad[0].unflatten(-1, (4, 4))))
    return pairs[0][0], pairs[1][0], pairs[0][1] - pairs[1][1]


@interpreted
@pytest.mark.parametrize(("diagonal", "spread"), [(0.0, 1.0), (4.0, 1.0), (8.0, 2.0)])
def test_the_limit_of_sinkhorn(diagonal: float, spread: float) -> None:
    torch.manual_seed(0)
    logits = diagonal * torch.eye(4) + spread * torch.randn(96, 4, 4)
    res, expected, gradient_error = limit_of(logits)
    rows, columns = doubly_stochastic_error(res.double())
    assert float(rows.max()) < 1e-6
    assert float(columns.max()) < 1e-6
    assert float((res - expected).abs().max()) < 1e-5
    assert float(gradient_error.abs().max()) < 1e-5
    assert float(res.min()) >= 0.0


@interpreted
def test_wild_logits_stay_doubly_stochastic_and_finite() -> None:
    torch.manual_seed(0)
    wild = torch.cat([100.0 * torch.randn(31, 4, 4), torch.zeros(1, 4, 4)])
    res, _, gradient_error = limit_of(wild)
    rows, columns = doubly_stochastic_error(res.double())
    assert float(rows.max()) < 1e-6
    assert float(columns.max()) < 1e-6
    assert bool(gradient_error.isfinite().all())
