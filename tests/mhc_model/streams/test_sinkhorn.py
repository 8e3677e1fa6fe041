"""Sinkhorn-Knopp against an fp64 reference, and as a map onto the doubly stochastic matrices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc_model import sinkhorn_knopp
from mhc_model.streams import SinkhornKnopp, doubly_stochastic_error, permutation_mixture

TOLERANCE = 1e-5


def reference(logits: torch.Tensor, iters: int, tau: float = 1.0, exact: bool = False):
    """One matrix in numpy fp64: scale rows, scale columns; `exact`: 3000 times."""
    scaled = logits.double().numpy() / tau
    p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    for _ in range(3000 if exact else iters):
        p = p / p.sum(axis=1, keepdims=True)
        p = p / p.sum(axis=0, keepdims=True)
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


@pytest.mark.parametrize(("iters", "exact"), [(1, False), (3, False), (20, False), (1, True)])
def test_equals_the_reference(iters, exact):
    for kind, n, tau in itertools.product(["normal", "near"], [3, 4, 7], [0.7, 1.0]):
        logits = draw(kind, 8, n, n, seed=n)
        p = sinkhorn_knopp(logits, iters=iters, tau=tau, exact=exact)
        p64 = sinkhorn_knopp(logits.double(), iters=iters, tau=tau, exact=exact)
        expected = torch.stack([reference(matrix, iters, tau, exact) for matrix in logits])
        assert p64.dtype == torch.float64
        # 3000 rounds are not yet the limit.
        torch.testing.assert_close(p64, expected, atol=1e-5 if exact else 1e-12, rtol=0)
        torch.testing.assert_close(p.double(), p64, atol=1e-6, rtol=0)


def test_two_streams_have_a_closed_form():
    """P_00 = sqrt(k00 k11) / (sqrt(k00 k11) + sqrt(k01 k10))."""
    logits = 5.0 * torch.randn(1000, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.sigmoid(
        (logits[:, 0, 0] + logits[:, 1, 1] - logits[:, 0, 1] - logits[:, 1, 0]) / 2
    )
    torch.testing.assert_close(sinkhorn_knopp(logits)[:, 0, 0], expected, atol=1e-9, rtol=0)


def test_the_limit_is_of_the_form_that_sinkhorn_knopp_converges_to():
    """diag(u) exp(logits) diag(v): log P - logits is a sum of a row and a column term."""
    for kind in ("normal", "near", "nearer"):
        logits = draw(kind, 2000, 4, 4).double()
        rest = sinkhorn_knopp(logits).log() - logits
        rest = rest - rest.mean(dim=-1, keepdim=True)
        rest = rest - rest.mean(dim=-2, keepdim=True)
        assert rest.abs().max() < 1e-8


def test_twenty_iterations_are_not_enough():
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
def test_gradients_in_float32_are_exact(kind):
    logits = draw(kind, 20_000, 4, 4)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))

    def gradient(x):
        x = x.clone().requires_grad_()
        (sinkhorn_knopp(x) * weights.to(x.dtype)).sum().backward()
        return x.grad.double()

    exact = gradient(logits.double())
    error = (gradient(logits) - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert error.max() < 1e-6
    # A projection in the norm weighted with P: no gradient grows.
    assert exact.abs().max() <= weights.abs().max() * 4


@pytest.mark.parametrize("kind", ["normal", "near"])
def test_gradients_equal_autograd_through_many_iterations(kind):
    logits = draw(kind, 100, 4, 4).double().requires_grad_()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    log_p = logits
    for _ in range(3000):
        log_p = log_p - log_p.logsumexp(dim=-1, keepdim=True)
        log_p = log_p - log_p.logsumexp(dim=-2, keepdim=True)
    (expected,) = torch.autograd.grad((log_p.exp() * weights).sum(), logits)
    (found,) = torch.autograd.grad((sinkhorn_knopp(logits) * weights).sum(), logits)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def test_is_one_operator_for_the_compiler():
    logits = draw("near", 5, 4, 4).requires_grad_()
    torch.library.opcheck(torch.ops.mhc.sinkhorn_limit.default, (logits,))


def test_permutation_mixture():
    """mHC-lite: every vertex is a permutation, every mixture doubly stochastic, no iterations."""
    corners = permutation_mixture(200.0 * torch.eye(24), 4)
    assert torch.equal(corners[0], torch.eye(4))
    assert len({tuple(m.argmax(dim=1).tolist()) for m in corners}) == 24
    logits = 5.0 * torch.randn(20_000, 24, generator=torch.Generator().manual_seed(0))
    assert_doubly_stochastic(permutation_mixture(logits, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_doubly_stochastic(permutation_mixture(logits, 4))
    with pytest.raises(ValueError, match="24"):
        permutation_mixture(torch.zeros(3, 16), 4)


def test_layer_gives_its_connection_matrix():
    layer = SinkhornKnopp(n=4)
    matrix = layer.get_connection_matrix()
    assert_doubly_stochastic(matrix)
    x = torch.randn(3, 4, 7)
    torch.testing.assert_close(layer(x), torch.einsum("nm,bnc->bmc", matrix, x))
    (layer(x) * x).sum().backward()
    assert layer.logits.grad.abs().max() > 1e-3


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
