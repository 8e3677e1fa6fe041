"""The Triton kernels in Triton's interpreter, against the formulas in float64 and autograd."""

from __future__ import annotations

import pytest
import torch
from triton_cases import (
    EPS,
    TAU,
    compare,
    crossing,
    fused_collapse,
    fused_cross,
    fused_enter,
    interpreted,
    parameters,
    plain_collapse,
    plain_cross,
    plain_enter,
)

from mhc_model.streams.kernels import library

SHAPES = [(1, 1, 16), (3, 7, 80), (2, 16, 64), (4, 5, 144)]
DTYPES = [torch.float32, torch.bfloat16]


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "t", "c"), SHAPES)
def test_cross(b: int, t: int, c: int, dtype: torch.dtype) -> None:
    torch.manual_seed(b)
    inputs = [*crossing(b, t, c, dtype), *parameters(c)]
    compare(fused_cross, plain_cross, inputs, EPS, TAU, skip=2)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "t", "c"), SHAPES[:2])
def test_enter(b: int, t: int, c: int, dtype: torch.dtype) -> None:
    torch.manual_seed(b)
    inputs = [crossing(b, t, c, dtype)[0], *parameters(c)]
    compare(fused_enter, plain_enter, inputs, EPS, TAU, skip=1)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "t", "c"), SHAPES)
def test_collapse(b: int, t: int, c: int, dtype: torch.dtype) -> None:
    torch.manual_seed(b)
    inputs = crossing(b, t, c, dtype)
    # Not doubly stochastic: else the gate would change nothing, and its gradient were zero.
    inputs[3] = torch.rand(b, t, 4, 4)
    compare(fused_collapse, plain_collapse, inputs)


@interpreted
def test_the_gradient_of_the_projection_is_summed_over_all_splits() -> None:
    # One column block and 50 tokens are several splits, the last of them not full.
    torch.manual_seed(0)
    inputs = [*crossing(2, 25, 16, torch.float32), *parameters(16)]
    compare(fused_cross, plain_cross, inputs, EPS, TAU, skip=2)


@interpreted
def test_a_sublayer_of_another_dtype() -> None:
    torch.manual_seed(0)
    inputs = [*crossing(2, 3, 32, torch.bfloat16), *parameters(32)]
    inputs[1] = inputs[1].float()
    compare(fused_cross, plain_cross, inputs, EPS, TAU, skip=2)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_gate_are_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y, post, res, _ = crossing(2, 5, 32, dtype)
    others = [*parameters(32), EPS, TAU]
    closed, opened = torch.zeros(2), torch.ones(2)
    silent = torch.zeros_like(y)
    new, _ = library.cross(x, silent, post, res, closed, *others)
    assert torch.equal(new, x)
    # A closed gate is a mixing by the identity, an open one by H_res: not nearly, but to the bit.
    identity = torch.eye(4).expand_as(res)
    of_identity = fused_cross(x, y, post, identity, opened, *others)
    for value, expected in zip(
        fused_cross(x, y, post, res, closed, *others), of_identity, strict=True
    ):
        assert torch.equal(value, expected)
    # H_res that only copies: an open gate must hand the entries on as they are.
    order = torch.eye(4)[[2, 0, 3, 1]].expand_as(res)
    new, _ = library.cross(x, silent, post, order, opened, *others)
    assert torch.equal(new[:, :, [2, 0, 3, 1]], x)
    half = torch.full_like(res, 0.1)  # 0.1 is not representable: (0.1 - 1) + 1 is another number
    ones = torch.ones(2, 5, 4, 32)
    ones[:, :, 1:] = 0.0
    new, _ = library.cross(ones, silent.float(), post, half, opened, *others)
    assert torch.equal(new, torch.full_like(new, 0.1))


@interpreted
def test_rows_of_a_batch_do_not_touch() -> None:
    torch.manual_seed(0)
    inputs = crossing(4, 3, 32, torch.float32)
    others = [*parameters(32), EPS, TAU]
    together = fused_cross(*inputs, *others)
    for i in range(4):
        alone = fused_cross(*(v[i : i + 1] for v in inputs), *others)
        for value, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(value, expected[i : i + 1], rtol=2e-6, atol=2e-6)


@interpreted
def test_only_some_gradients_arrive() -> None:
    torch.manual_seed(0)
    inputs = [*crossing(1, 3, 32, torch.float32), *parameters(32)]
    for wanted in (0, 1, 3, 4):
        grads = []
        for operation in (fused_cross, plain_cross):
            leaves = [v.clone().requires_grad_() for v in inputs]
            output = operation(*leaves, EPS, TAU)[wanted].double()
            grads.append(torch.autograd.grad(output.square().sum(), leaves, allow_unused=True))
        for value, expected in zip(*grads, strict=True):
            wish = torch.zeros_like(value) if expected is None else expected
            assert float((value - wish).abs().max()) < 1e-5 * (1.0 + float(wish.abs().max()))
    assert not fused_cross(*leaves, EPS, TAU)[2].requires_grad  # H_pre is for figures
