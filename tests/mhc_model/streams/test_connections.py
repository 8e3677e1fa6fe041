"""Hyper-connections against the formulas written as loops, and against DeepSeek-V4's module."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mhc_model import MHCConfig, sinkhorn_knopp
from mhc_model.decoder.layers import rms_norm
from mhc_model.streams import Coefficients, HyperConnection, gated

B, T, C = 2, 3, 6
EPS = 1e-6


def make(n: int = 4, seed: int = 0, **fields) -> HyperConnection:
    """A connection whose every parameter is random and counts."""
    generator = torch.Generator().manual_seed(seed)
    connection = HyperConnection(MHCConfig(n_streams=n, **fields), C, sublayer=1, norm_eps=EPS)
    with torch.no_grad():
        connection.fn.normal_(0.0, 0.3, generator=generator)
        connection.base.normal_(0.0, 1.0, generator=generator)
        connection.scale.copy_(torch.tensor([0.7, 1.3, 0.9]))
    return connection


def streams(n: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(B, T, n, C, generator=torch.Generator().manual_seed(seed))


def sinkhorn_loops(logits: np.ndarray, iters: int) -> np.ndarray:
    p = np.exp(logits - logits.max())
    for _ in range(iters):
        p = p / p.sum(axis=1, keepdims=True)
        p = p / p.sum(axis=0, keepdims=True)
    return p


def reference(connection: HyperConnection, x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor):
    """The formulas in fp64 numpy, token by token and stream by stream.

    Returns the sublayer's input (b, t, c), the new streams (b, t, n, c) and H_res (b, t, n, n).
    """
    n = x.shape[2]
    fn, base, scale = (
        p.detach().double().numpy() for p in (connection.fn, connection.base, connection.scale)
    )
    x, y, gate = x.double().numpy(), y.double().numpy(), gate.double().numpy()
    inputs, outputs = np.zeros((B, T, C)), np.zeros((B, T, n, C))
    mixing = np.zeros((B, T, n, n))
    for b in range(B):
        for t in range(T):
            vector = np.concatenate([x[b, t, i] for i in range(n)])
            vector = vector / np.sqrt((vector**2).mean() + EPS)
            product = vector @ fn
            h_pre = 1 / (1 + np.exp(-(scale[0] * product[:n] + base[:n])))
            h_post = 2 / (1 + np.exp(-(scale[1] * product[n : 2 * n] + base[n : 2 * n])))
            logits = scale[2] * product[2 * n :] + base[2 * n :]
            logits = logits.reshape(n, n) / connection.config.tau
            # 2000 iterations: the limit, so that how the implementation closes does not matter.
            h_res = sinkhorn_loops(logits, 2000)
            mixing[b, t] = h_res
            for i in range(n):
                inputs[b, t] += h_pre[i] * x[b, t, i]
            for j in range(n):
                for i in range(n):
                    identity = 1.0 if i == j else 0.0
                    weight = (1 - gate[b]) * identity + gate[b] * h_res[i, j]
                    outputs[b, t, j] += weight * x[b, t, i]
                outputs[b, t, j] += h_post[j] * y[b, t]
    return inputs, outputs, mixing


@pytest.mark.parametrize("n", [2, 4, 5])
@pytest.mark.parametrize("tau", [1.0, 0.7])
def test_equals_the_formulas(n, tau):
    connection = make(n, tau=tau)
    x, y = streams(n), torch.randn(B, T, C, generator=torch.Generator().manual_seed(2))
    gate = torch.tensor([0.3, 1.0])
    u, coefficients = connection.enter(x)
    inputs, outputs, mixing = map(torch.from_numpy, reference(connection, x, y, gate))
    torch.testing.assert_close(coefficients.res.double(), mixing, atol=1e-5, rtol=0)
    torch.testing.assert_close(u.double(), rms_norm(inputs, EPS), atol=1e-5, rtol=0)
    new = connection.leave(x, y, coefficients, gate)
    assert new.dtype == torch.float32
    torch.testing.assert_close(new.double(), outputs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("iters", [20, 200])
def test_equals_deepseek_v4(iters):
    """Same parameters, same streams; theirs has no closing step, so iterations bring them together.

    At 20 iterations the tolerance is the error that plain Sinkhorn-Knopp leaves.
    """
    modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    connection = make(sinkhorn_iters=iters)
    config = SimpleNamespace(
        hc_mult=4, hc_sinkhorn_iters=iters, hc_eps=0.0, rms_norm_eps=EPS, hidden_size=C
    )
    theirs = modeling.DeepseekV4HyperConnection(config)
    with torch.no_grad():
        theirs.fn.copy_(connection.fn.T)
        theirs.base.copy_(connection.base)
        theirs.scale.copy_(connection.scale)
        x, y = streams(), torch.randn(B, T, C, generator=torch.Generator().manual_seed(2))
        post, comb, collapsed = theirs(x)
        # As in DeepseekV4DecoderLayer.forward.
        expected = post.unsqueeze(-1) * y.unsqueeze(-2) + torch.matmul(comb.transpose(-1, -2), x)
        u, ours = connection.enter(x)
        new = connection.leave(x, y, ours, torch.ones(B))
    tolerance = 5e-3 if iters == 20 else 1e-5
    torch.testing.assert_close(u, rms_norm(collapsed, EPS), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.post, post, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.res, comb, atol=tolerance, rtol=0)
    torch.testing.assert_close(new, expected, atol=4 * tolerance, rtol=0)


def test_plain_sinkhorn_equals_deepseek_v4_at_twenty_iterations():
    modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    config = SimpleNamespace(
        hc_mult=4, hc_sinkhorn_iters=20, hc_eps=0.0, rms_norm_eps=EPS, hidden_size=C
    )
    theirs = modeling.DeepseekV4HyperConnection(config)
    logits = 4 * torch.eye(4) + torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs.fn.zero_()
        theirs.scale.zero_()
        theirs.base.copy_(torch.cat([torch.zeros(8), logits.reshape(-1)]))
        _, comb, _ = theirs(streams())
    expected = sinkhorn_knopp(logits, iters=20, exact=False)
    torch.testing.assert_close(comb[0, 0], expected, atol=1e-6, rtol=0)


def test_orientation():
    """H_res[i, j] is what stream i sends to stream j."""
    connection = make()
    x = streams()
    res = torch.zeros(B, T, 4, 4)
    for i, j in ((0, 1), (1, 2), (2, 3), (3, 0)):
        res[:, :, i, j] = 1.0
    coefficients = Coefficients(torch.zeros(B, T, 4), torch.zeros(B, T, 4), res)
    moved = connection.leave(x, torch.zeros(B, T, C), coefficients, torch.ones(B))
    assert torch.equal(moved[:, :, 1], x[:, :, 0])
    assert torch.equal(moved[:, :, 0], x[:, :, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_zero_is_bitwise_the_identity(dtype):
    connection, x = make(), streams().to(dtype)
    _, coefficients = connection.enter(x)
    kept = connection.leave(x, torch.zeros(B, T, C, dtype=dtype), coefficients, torch.zeros(B))
    assert kept.dtype == dtype
    assert torch.equal(kept, x)


def test_gate_one_is_h_res_itself():
    res = make().enter(streams())[1].res
    assert torch.equal(gated(res, torch.ones(B)), res)


def test_linear_in_the_gate_and_each_row_has_its_own():
    connection, x = make(), streams()
    y, (_, coefficients) = torch.randn(B, T, C), connection.enter(streams())
    zero = connection.leave(x, y, coefficients, torch.zeros(B))
    one = connection.leave(x, y, coefficients, torch.ones(B))
    assert (zero - one).abs().max() > 0.1
    gate = torch.tensor([0.25, 0.8])
    mixed = connection.leave(x, y, coefficients, gate)
    expected = zero + gate[:, None, None, None] * (one - zero)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)


def test_coefficients_are_bounded_and_doubly_stochastic_whatever_the_streams():
    for scale in (0.0, 1e-3, 1.0, 1e4):
        _, (pre, post, res) = make().enter(scale * streams())
        assert ((pre >= 0) & (pre <= 1)).all()
        assert ((post >= 0) & (post <= 2)).all()
        assert (res >= 0).all()
        assert (res.sum(-1) - 1).abs().max() < 1e-5
        assert (res.sum(-2) - 1).abs().max() < 1e-5


def test_autocast_does_not_reach_the_coefficients():
    connection, x = make(), streams().bfloat16()
    _, expected = connection.enter(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, actual = connection.enter(x)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, e)


@pytest.mark.parametrize("gate", [0.5, 1.0])
def test_gain_of_many_sublayers(gate):
    """amax gain: largest absolute row or column sum of the product of 24 mixings (2512.24880)."""
    product = torch.eye(4).expand(B, T, 4, 4)
    for seed in range(24):
        product = product @ gated(
            make(seed=seed).enter(streams(seed=seed))[1].res, torch.full((B,), gate)
        )
    assert product.abs().sum(dim=-1).max() < 1.01
    assert product.abs().sum(dim=-2).max() < 1.01


def test_initial_values_are_the_preset():
    config = MHCConfig(res_diagonal=4.0, pre_own=1.5, pre_others=-1.5)
    for sublayer in range(6):
        connection = HyperConnection(config, C, sublayer, EPS)
        _, (pre, post, res) = connection.enter(streams())
        assert pre[0, 0].argmax() == sublayer % 4
        assert torch.allclose(post, torch.ones(B, T, 4))
        assert torch.allclose(res, connection.initial_res().expand_as(res), atol=1e-6)
        assert res[0, 0].diagonal().min() > 0.94
