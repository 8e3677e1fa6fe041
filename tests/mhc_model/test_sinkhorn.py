"""Sinkhorn-Knopp against an fp64 reference, and as a map onto the doubly stochastic matrices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc_model import sinkhorn_knopp
from mhc_model.sinkhorn import doubly_stochastic_error

TOLERANCE = 1e-5


def reference(logits: torch.Tensor, iters: int, tau: float = 1.0, exact: bool = False):
    """One matrix in numpy fp64: scale rows, scale columns, then algorithm 2 of arXiv:1705.09634."""
    scaled = logits.double().numpy() / tau
    p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    for _ in range(iters):
        for i in range(len(p)):
            p[i] /= p[i].sum()
        for j in range(len(p)):
            p[:, j] /= p[:, j].sum()
    if exact:
        p = np.diag(np.minimum(1.0 / p.sum(axis=1), 1.0)) @ p
        p = p @ np.diag(np.minimum(1.0 / p.sum(axis=0), 1.0))
        rows, columns = 1.0 - p.sum(axis=1), 1.0 - p.sum(axis=0)
        if np.abs(rows).sum() > 1e-14:
            p = p + np.outer(rows, columns) / np.abs(rows).sum()
    return torch.from_numpy(p)


def draw(kind: str, *shape: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    diagonal, spread = {"normal": (0, 1), "near": (4, 1), "nearer": (8, 2)}[kind]
    return diagonal * torch.eye(shape[-1]) + spread * noise


def assert_doubly_stochastic(p: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert p.isfinite().all()
    assert p.min() >= 0.0
    assert (p.sum(dim=-1) - 1.0).abs().max() < tolerance
    assert (p.sum(dim=-2) - 1.0).abs().max() < tolerance


@pytest.mark.parametrize("kind", ["normal", "near", "nearer"])
def test_twenty_thousand_matrices_are_doubly_stochastic(kind):
    p = sinkhorn_knopp(draw(kind, 20_000, 4, 4))
    assert p.dtype == torch.float32
    assert_doubly_stochastic(p)


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("tau", [0.05, 0.5, 1.0, 4.0])
def test_other_sizes_leading_shapes_and_temperatures(n, tau):
    p = sinkhorn_knopp(draw("near", 3, 1, 50, n, n), iters=7, tau=tau)
    assert p.shape == (3, 1, 50, n, n)
    assert_doubly_stochastic(p)


def test_a_single_matrix_and_an_empty_batch():
    assert_doubly_stochastic(sinkhorn_knopp(draw("normal", 5, 5)))
    assert sinkhorn_knopp(torch.zeros(0, 4, 4)).shape == (0, 4, 4)


def test_low_precision_input_is_computed_in_float32():
    logits = draw("near", 1000, 4, 4).bfloat16()
    p = sinkhorn_knopp(logits)
    assert p.dtype == torch.float32
    assert torch.equal(p, sinkhorn_knopp(logits.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(p, sinkhorn_knopp(logits))


@pytest.mark.parametrize("iters", [1, 3, 20])
@pytest.mark.parametrize("exact", [False, True])
def test_equals_the_reference(iters, exact):
    for kind, n, tau in itertools.product(["normal", "near"], [2, 4, 7], [0.5, 1.0]):
        logits = draw(kind, 8, n, n, seed=n)
        p = sinkhorn_knopp(logits, iters=iters, tau=tau, exact=exact)
        p64 = sinkhorn_knopp(logits.double(), iters=iters, tau=tau, exact=exact)
        expected = torch.stack([reference(matrix, iters, tau, exact) for matrix in logits])
        assert p64.dtype == torch.float64
        torch.testing.assert_close(p64, expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(p.double(), expected, atol=2e-6, rtol=0)


def test_closing_step_is_needed_and_small():
    logits = draw("near", 5000, 4, 4)
    rows, columns = doubly_stochastic_error(sinkhorn_knopp(logits, exact=False))
    assert rows.max() > 1e-2
    assert columns.max() < TOLERANCE
    moved = (sinkhorn_knopp(logits) - sinkhorn_knopp(logits, exact=False)).abs().amax()
    assert moved < 2 * rows.max()


@pytest.mark.parametrize("exact", [False, True])
def test_gradcheck(exact):
    logits = draw("near", 3, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sinkhorn_knopp(x, iters=4, exact=exact), (logits,))


@pytest.mark.parametrize("kind", ["normal", "near", "nearer"])
@pytest.mark.parametrize("iters", [20, 100])
def test_gradients_stay_small_where_sinkhorn_has_converged(kind, iters):
    """The closing step divides by a mass that is pure rounding error in a converged matrix."""
    logits = draw(kind, 5000, 4, 4)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))

    def gradient(x):
        x = x.clone().requires_grad_()
        (sinkhorn_knopp(x, iters=iters) * weights).sum().backward()
        return x.grad

    exact = gradient(logits.double())
    single = gradient(logits)
    assert exact.abs().max() < 2.0
    assert single.abs().max() < 2.0
    # The closing step is not smooth: where a row sum is one to rounding error, fp32 and fp64 may
    # take different sides. It is a handful among thousands.
    apart = (single - exact).abs().flatten(1).amax(dim=1)
    assert (apart > 1e-4).float().mean() < 1e-3


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 6),
    seed=st.integers(0, 1 << 30),
    scale=st.floats(0.0, 30.0),
    data=st.data(),
)
def test_permuting_the_logits_permutes_the_result(n, seed, scale, data):
    rows = data.draw(st.permutations(range(n)))
    columns = data.draw(st.permutations(range(n)))
    logits = scale * torch.randn(n, n, generator=torch.Generator().manual_seed(seed)).double()
    moved = sinkhorn_knopp(logits[rows][:, columns])
    torch.testing.assert_close(moved, sinkhorn_knopp(logits)[rows][:, columns], atol=1e-9, rtol=0)


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(2, 8),
    iters=st.integers(1, 60),
    seed=st.integers(0, 1 << 30),
    scale=st.floats(0.0, 1e4),
)
def test_any_logits_give_a_doubly_stochastic_matrix_and_a_finite_gradient(n, iters, seed, scale):
    logits = scale * torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    p = sinkhorn_knopp(logits.requires_grad_(), iters=iters)
    assert_doubly_stochastic(p)
    (p * torch.arange(n * n).reshape(n, n)).sum().backward()
    assert logits.grad.isfinite().all()


BLOCK = torch.full((4, 4), -200.0)
BLOCK[0, :] = BLOCK[:, 0] = 200.0
EXTREME = {
    "identity": 200.0 * torch.eye(4),
    "off-diagonal": -200.0 * torch.eye(4),
    "equal": torch.full((4, 4), 7.0),
    "zero": torch.zeros(4, 4),
    "equal rows": torch.tensor([[200.0, 0.0, 0.0, -200.0]]).repeat(4, 1),
    "equal columns": torch.tensor([[200.0], [0.0], [0.0], [-200.0]]).repeat(1, 4),
    "one column": torch.tensor([[500.0, 0.0, 0.0, 0.0]]).repeat(4, 1),
    "one row and column": BLOCK,
    "signs": 200.0 * torch.sign(draw("normal", 500, 4, 4)),
    "wide": 200.0 * draw("normal", 2000, 4, 4),
    "huge": 1e30 * draw("normal", 100, 4, 4),
}


@pytest.mark.parametrize("name", EXTREME)
@pytest.mark.parametrize("iters", [1, 20, 200])
def test_extreme_logits(name, iters):
    logits = EXTREME[name].clone().requires_grad_()
    p = sinkhorn_knopp(logits, iters=iters)
    assert_doubly_stochastic(p)
    (p * draw("normal", *p.shape, seed=3)).sum().backward()
    assert logits.grad.isfinite().all()


def test_limits():
    p = sinkhorn_knopp(200.0 * torch.eye(4))
    torch.testing.assert_close(p, torch.eye(4), atol=1e-20, rtol=0)
    torch.testing.assert_close(sinkhorn_knopp(torch.zeros(4, 4)), torch.full((4, 4), 0.25))
    # The cold limit is the best assignment.
    p = sinkhorn_knopp(torch.tensor([[0.0, 3.0, 1.0], [3.0, 2.0, 0.0], [0.0, 1.0, 2.0]]), tau=0.02)
    torch.testing.assert_close(p, torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 3)])
def test_refuses_what_is_not_square(shape):
    with pytest.raises(ValueError, match="expected"):
        sinkhorn_knopp(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [{"iters": 0}, {"tau": 0.0}, {"tau": -1.0}, {"tau": np.nan}])
def test_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        sinkhorn_knopp(torch.zeros(4, 4), **arguments)


def test_error_measure_reports_rows_and_columns():
    matrix = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.3], [0.1, 0.5]]])
    rows, columns = doubly_stochastic_error(matrix)
    torch.testing.assert_close(rows, torch.tensor([0.0, 0.4]))
    torch.testing.assert_close(columns, torch.tensor([0.0, 0.2]))
