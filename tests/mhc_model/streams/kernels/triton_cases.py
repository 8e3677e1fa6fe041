"""The formulas that the Triton kernels are compared with, in float64, and what goes in."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhc_model.streams import sinkhorn_knopp
from mhc_model.streams.kernels import library

# Triton looks at this when it is first imported, and torch may import it for other tests: these
# run in a process of their own, which `test_kernel_library.py` starts.
IN_INTERPRETER = os.environ.get("MHC_TEST_TRITON") == "1"
EPS, TAU = 1e-6, 0.8

interpreted = pytest.mark.skipif(
    not IN_INTERPRETER, reason="runs in the interpreter's process, see test_kernel_library.py"
)
Operation = Callable[..., tuple[Tensor, ...]]


def gated(res: Tensor, gate: Tensor) -> Tensor:
    return torch.lerp(torch.eye(4).to(res), res, gate.to(res)[:, None, None, None])


def plain_enter(
    x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float, tau: float
) -> tuple[Tensor, ...]:
    x, fn, base, strength = (v.double() for v in (x, fn, base, strength))
    normed = F.rms_norm(x.flatten(2), (4 * x.shape[3],), eps=eps)
    raw = base + (normed @ fn) * strength
    pre, post = raw[..., :4].sigmoid(), 2.0 * raw[..., 4:8].sigmoid()
    res = sinkhorn_knopp(raw[..., 8:].unflatten(-1, (4, 4)), tau=tau)
    u = torch.einsum("bti,btic->btc", pre, x)
    return F.rms_norm(u, (x.shape[3],), eps=eps), pre, post, res


def plain_leave(x: Tensor, y: Tensor, post: Tensor, res: Tensor, gate: Tensor) -> Tensor:
    x, y, post, res = (v.double() for v in (x, y, post, res))
    mixed = torch.einsum("btij,btic->btjc", gated(res, gate), x)
    return mixed + post[..., None] * y[:, :, None]


def plain_cross(*inputs: Any, stored: Tensor | None = None) -> tuple[Tensor, ...]:
    x, *rest = inputs
    new = plain_leave(x, *rest[:4])
    if stored is not None:
        # What is stored of the streams is read; rounding has no gradient. The interpreter cuts off
        # to bfloat16 where a GPU rounds to nearest: the sublayer reads what was stored in fact.
        assert bool(((stored - new).abs() <= 2**-7 * new.abs() + 1e-6).all())
        new = new + (stored.double() - new).detach()
    return new, *plain_enter(new, *rest[4:])


def plain_collapse(*inputs: Tensor) -> tuple[Tensor, ...]:
    return (plain_leave(*inputs).mean(dim=2),)


def fused_enter(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(library.enter(*inputs))


def fused_cross(*inputs: Any) -> tuple[Tensor, ...]:
    new, entered = library.cross(*inputs)
    return new, *entered


def fused_collapse(*inputs: Tensor) -> tuple[Tensor, ...]:
    return (library.collapse(*inputs),)


GATES = (0.0, 1.0, 0.3, 0.7)


def crossing(b: int, t: int, c: int, dtype: torch.dtype) -> list[Tensor]:
    """x, y, post, res, gate."""
    x, y = torch.randn(b, t, 4, c).to(dtype), torch.randn(b, t, c).to(dtype)
    res = sinkhorn_knopp(torch.eye(4) + torch.randn(b, t, 4, 4))
    return [x, y, 2.0 * torch.rand(b, t, 4), res, torch.tensor(GATES[:b])]


def parameters(c: int) -> list[Tensor]:
    """fn, base, strength."""
    fn = torch.randn(4 * c, 24) / (4 * c) ** 0.5
    return [fn, torch.randn(24), 0.5 + torch.rand(24)]


def run(
    operation: Operation, inputs: list[Tensor], *constants: float, skip: int = -1
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Outputs, and the gradients for a fixed weighting of all outputs but `skip`."""
    inputs = [v.clone().requires_grad_() for v in inputs]
    outputs = operation(*inputs, *constants)
    generator = torch.Generator().manual_seed(5)
    loss = torch.zeros((), dtype=torch.float64)
    for k, value in enumerate(outputs):
        weights = torch.randn(value.shape, generator=generator)
        if k != skip:
            # Rounded as the gradient will be: this is no error of the kernel.
            loss = loss + (value.double() * weights.to(value.dtype)).sum()
    loss.backward()
    return tuple(v.detach() for v in outputs), [v.grad for v in inputs if v.grad is not None]


def relative(value: Tensor, expected: Tensor) -> float:
    difference = (value.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-12))


def compare(
    fused: Operation,
    plain: Operation,
    inputs: list[Tensor],
    *constants: float,
    skip: int = -1,
) -> None:
    low = inputs[0].dtype != torch.float32
    outputs, gradients = run(fused, inputs, *constants, skip=skip)
    if plain is plain_cross and low:
        plain = functools.partial(plain_cross, stored=outputs[0])
    expected_outputs, expected_gradients = run(plain, inputs, *constants, skip=skip)
    assert len(gradients) == len(expected_gradients) == len(inputs)
    for k, (value, expected) in enumerate(zip(outputs, expected_outputs, strict=True)):
        # Coefficients are float32 in any case; 18 bits of the projections reach them from 16-bit
        # streams.
        bound = 1e-6 if not low else 5e-3 if value.dtype != torch.float32 else 1e-5
        assert relative(value, expected) < bound, f"output {k}"
    for k, (value, expected) in enumerate(zip(gradients, expected_gradients, strict=True)):
        assert value.dtype == inputs[k].dtype
        assert relative(value, expected) < (1e-2 if low else 2e-6), f"gradient {k}"
