"""Launchers of the Triton kernels as operators of torch, with their gradients.

Each boundary is one operator forward and one backward, so `torch.compile` passes through without a
break. Triton itself is imported at the first launch: this module loads on machines without it.

Axes: b batch, t token, n = 4 streams (senders), m streams (receivers), c channel, k = 24 the
coefficients of a token. T = b * t tokens. Coefficients lie in planes, tokens innermost: (b, t, n)
is a view of (n, T), and stays one on its way through autograd.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhc_model.streams.kernels.triton_launch import (
    CHANNELS,
    COLLAPSE,
    DTYPES,
    STREAMS,
    backward,
    check,
    entered,
    forward,
    from_planes,
    kernels,
    launch,
    planes,
    to_planes,
)

__all__ = ["CHANNELS", "DTYPES", "STREAMS", "Entered", "collapse", "cross", "enter", "is_available"]


class Entered(NamedTuple):
    """What a sublayer reads, and its coefficients."""

    un: Tensor  # (b, t, c), dtype of the streams: RMSNorm(sum_i H_pre_i x_i)
    pre: Tensor  # (b, t, n) float32 in [0, 1]; for figures, it has no gradient of its own
    post: Tensor  # (b, t, n) float32 in [0, 2]
    res: Tensor  # (b, t, n, m) float32, doubly stochastic


# Looked up here: a compiler that traces `is_available` cannot search for packages.
HAS_TRITON = importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    import triton

    knobs = getattr(triton, "knobs", None)
    return knobs is not None and bool(knobs.runtime.interpret)


def is_available(device: torch.device | str) -> bool:
    """Whether the kernels run there: on CUDA, or anywhere in Triton's interpreter."""
    return HAS_TRITON and (torch.device(device).type == "cuda" or _interpreted())


def enter(x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float, tau: float) -> Entered:
    """Reads the streams.

    Args:
        x: (b, t, n, c) streams, float32, bfloat16 or float16; c a multiple of 16.
        fn: (n * c, k) float32 projections.
        base: (k,) float32 biases.
        strength: (k,) float32, what each column of the projection is multiplied by.
        eps: of both RMSNorms.
        tau: temperature of H_res.

    Raises:
        ConfigError: if the kernels do not serve such streams.
    """
    return Entered(*_ops().triton_enter(x, fn, base, strength, eps, tau)[:4])


def cross(
    x: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor,
    gate: Tensor,
    fn: Tensor,
    base: Tensor,
    strength: Tensor,
    eps: float,
    tau: float,
) -> tuple[Tensor, Entered]:
    """Leaves one sublayer and enters the next.

    Args:
        x: (b, t, n, c) streams before the sublayer that is left.
        y: (b, t, c) its output, any of the dtypes of x.
        post: (b, t, n) float32, its H_post.
        res: (b, t, n, m) float32, its H_res before the gate.
        gate: (b,) in [0, 1]; 0 is exactly the identity mixing and 1 exactly H_res.
        fn: this and the others are of the next sublayer, as in `enter`.

    Returns:
        The streams between the two, (b, t, n, c) of the dtype of x, and what `enter` gives.
    """
    new, *entered = _ops().triton_cross(x, y, post, res, gate.float(), fn, base, strength, eps, tau)
    return new, Entered(*entered[:4])


def collapse(x: Tensor, y: Tensor, post: Tensor, res: Tensor, gate: Tensor) -> Tensor:
    """The mean of the streams after the last sublayer, (b, t, c); arguments as in `cross`."""
    mean: Tensor = _ops().triton_collapse(x, y, post, res, gate.float())
    return mean


def _ops() -> Any:
    return torch.ops.mhc


@torch.library.custom_op("mhc::triton_enter", mutates_args=())
def _enter(
    x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float, tau: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return forward(x, None, fn, base, strength, eps, tau)[1]


@_enter.register_fake
def _(
    x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float, tau: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check(x, fn)
    return entered(x)


@torch.library.custom_op("mhc::triton_enter_backward", mutates_args=())
def _enter_backward(
    dun: Tensor | None,
    dpost_out: Tensor | None,
    dres_out: Tensor | None,
    x: Tensor,
    fn: Tensor,
    strength: Tensor,
    pre: Tensor,
    post: Tensor,
    res: Tensor,
    saved: Tensor,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = (None, dun, dpost_out, dres_out)
    g = backward(grads, x, None, x, fn, strength, (pre, post, res, saved), tau)
    return g.dx, g.dfn, g.dbase, g.dstrength


@_enter_backward.register_fake
def _(
    dun: Tensor | None,
    dpost_out: Tensor | None,
    dres_out: Tensor | None,
    x: Tensor,
    fn: Tensor,
    strength: Tensor,
    pre: Tensor,
    post: Tensor,
    res: Tensor,
    saved: Tensor,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _like(x), _like(fn), _like(strength), _like(strength)


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save_enter(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, fn, _, strength, _, ctx.tau = inputs
    _, pre, post, res, saved = output
    ctx.save_for_backward(x, fn, strength, pre, post, res, saved)
    ctx.mark_non_differentiable(pre, saved)
    ctx.set_materialize_grads(False)


def _enter_gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    dun, _, dpost, dres, _ = grads
    if dun is None and dpost is None and dres is None:
        return (None,) * 6
    dx, dfn, dbase, dstrength = _ops().triton_enter_backward(
        dun, dpost, dres, *ctx.saved_tensors, ctx.tau
    )
    return dx, dfn, dbase, dstrength, None, None


torch.library.register_autograd("mhc::triton_enter", _enter_gradient, setup_context=_save_enter)


@torch.library.custom_op("mhc::triton_cross", mutates_args=())
def _cross(
    x: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor,
    gate: Tensor,
    fn: Tensor,
    base: Tensor,
    strength: Tensor,
    eps: float,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    new, entered = forward(x, (y, post, res, gate), fn, base, strength, eps, tau)
    return new, *entered


@_cross.register_fake
def _(
    x: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor,
    gate: Tensor,
    fn: Tensor,
    base: Tensor,
    strength: Tensor,
    eps: float,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    check(x, fn)
    return _like(x), *entered(x)


@torch.library.custom_op("mhc::triton_cross_backward", mutates_args=())
def _cross_backward(
    dnew: Tensor | None,
    dun: Tensor | None,
    dpost_out: Tensor | None,
    dres_out: Tensor | None,
    x: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor,
    gate: Tensor,
    new: Tensor,
    fn: Tensor,
    strength: Tensor,
    pre_out: Tensor,
    post_out: Tensor,
    res_out: Tensor,
    saved: Tensor,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = backward(
        (dnew, dun, dpost_out, dres_out),
        x,
        (y, post, res, gate),
        new,
        fn,
        strength,
        (pre_out, post_out, res_out, saved),
        tau,
    )
    return g.dx, g.dy, g.dpost, g.dres, g.dgate.sum(dim=1), g.dfn, g.dbase, g.dstrength


@_cross_backward.register_fake
def _(
    dnew: Tensor | None,
    dun: Tensor | None,
    dpost_out: Tensor | None,
    dres_out: Tensor | None,
    x: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor,
    gate: Tensor,
    new: Tensor,
    fn: Tensor,
    strength: Tensor,
    pre_out: Tensor,
    post_out: Tensor,
    res_out: Tensor,
    saved: Tensor,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = x.shape[2]
    dpost, dres = from_planes(x, n), from_planes(x, n, n)
    parameters = _like(fn), _like(strength), _like(strength)
    return _like(x), _like(y), dpost, dres, _like(gate), *parameters


def _save_cross(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, post, res, gate, fn, _, strength, _, ctx.tau = inputs
    new, _, pre_out, post_out, res_out, saved = output
    before = (x, y, post, res, gate, new, fn, strength)
    ctx.save_for_backward(*before, pre_out, post_out, res_out, saved)
    ctx.mark_non_differentiable(pre_out, saved)
    ctx.set_materialize_grads(False)


def _cross_gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    dnew, dun, _, dpost, dres, _ = grads
    if dnew is None and dun is None and dpost is None and dres is None:
        return (None,) * 10
    into = _ops().triton_cross_backward(dnew, dun, dpost, dres, *ctx.saved_tensors, ctx.tau)
    return *into, None, None


torch.library.register_autograd("mhc::triton_cross", _cross_gradient, setup_context=_save_cross)


@torch.library.custom_op("mhc::triton_collapse", mutates_args=())
def _collapse(x: Tensor, y: Tensor, post: Tensor, res: Tensor, gate: Tensor) -> Tensor:
    check(x)
    x = x.contiguous()
    mean = x.new_empty(*x.shape[:2], x.shape[3])
    launch(
        kernels().collapse_forward,
        x,
        COLLAPSE,
        x,
        y.contiguous(),
        to_planes(post, x),
        to_planes(res, x),
        gate.contiguous(),
        mean,
        x.shape[0] * x.shape[1],
        x.shape[1],
    )
    return mean


@_collapse.register_fake
def _(x: Tensor, y: Tensor, post: Tensor, res: Tensor, gate: Tensor) -> Tensor:
    check(x)
    return x.new_empty(*x.shape[:2], x.shape[3])


@torch.library.custom_op("mhc::triton_collapse_backward", mutates_args=())
def _collapse_backward(
    dmean: Tensor, x: Tensor, y: Tensor, post: Tensor, res: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = x.shape[2]
    x, y = x.contiguous(), y.contiguous()
    dpost, dres = from_planes(x, n), from_planes(x, n, n)
    dx, dy = torch.empty_like(x), torch.empty_like(y)
    dgate = x.new_empty(x.shape[:2], dtype=torch.float32)
    launch(
        kernels().collapse_backward,
        x,
        COLLAPSE,
        dmean.contiguous(),
        x,
        y,
        to_planes(post, x),
        to_planes(res, x),
        gate.contiguous(),
        dx,
        dy,
        planes(dpost),
        planes(dres),
        dgate,
        x.shape[0] * x.shape[1],
        x.shape[1],
    )
    return dx, dy, dpost, dres, dgate.sum(dim=1)


@_collapse_backward.register_fake
def _(
    dmean: Tensor, x: Tensor, y: Tensor, post: Tensor, res: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = x.shape[2]
    return _like(x), _like(y), from_planes(x, n), from_planes(x, n, n), _like(gate)


def _save_collapse(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _collapse_gradient(ctx: Any, dmean: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = _ops().triton_collapse_backward(dmean, *ctx.saved_tensors)
    return gradients


torch.library.register_autograd(
    "mhc::triton_collapse", _collapse_gradient, setup_context=_save_collapse
)
