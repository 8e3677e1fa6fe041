"""Launchers of the Triton kernels, and the layout of what they take.

Coefficients lie in planes, tokens innermost: (b, t, n) is a view of (n, T), T = b * t, and stays
one on its way through autograd. Triton itself is imported at the first launch.

Axes: b batch, t token, n = 4 streams (senders), m streams (receivers), c channel, k = 24 the
coefficients of a token.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhc_model.errors import ConfigError

STREAMS = 4
COEFFICIENTS = 2 * STREAMS + STREAMS * STREAMS
SAVED = COEFFICIENTS + 2 + STREAMS  # see INVERSE, INVERSE_U and DOTS in triton_kernels
CHANNELS = 16  # c is a multiple of it
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the streams

# Blocks of each kernel, to be tuned on the device: chosen from what the compiler says for sm_90
# (registers, spills), not measured. A program keeps all coefficients of BLOCK_T tokens in
# registers, and what it reads twice should still be in L2: few tokens. FORWARD takes 168 registers
# with 64 bytes spilled, so three programs fit a multiprocessor; BACKWARD 255 and none spilled.
FORWARD = {"BLOCK_T": 16, "BLOCK_C": 32, "num_warps": 4, "num_stages": 2, "maxnreg": 168}
BACKWARD = {"BLOCK_T": 16, "BLOCK_C": 32, "num_warps": 4, "num_stages": 2}
PROJECTION = {"BLOCK_T": 32, "BLOCK_C": 128, "num_warps": 4, "num_stages": 3}
COLLAPSE = {"BLOCK_T": 16, "BLOCK_C": 64, "num_warps": 4, "num_stages": 2}
PROGRAMS = 512  # of the projection's gradient, about four for each multiprocessor of an H100


def kernels() -> Any:
    from mhc_model.streams.kernels import triton_kernels

    return triton_kernels


def check(x: Tensor, fn: Tensor | None = None) -> None:
    if x.ndim != 4 or x.shape[2] != STREAMS or x.shape[3] % CHANNELS or not x.shape[3]:
        raise ConfigError(
            f"streams have shape {tuple(x.shape)}; the Triton kernels serve (b, t, {STREAMS}, c) "
            f"with c a multiple of {CHANNELS}"
        )
    if x.dtype not in DTYPES:
        raise ConfigError(f"streams are {x.dtype}; expected float32, bfloat16 or float16")
    expected = (STREAMS * x.shape[3], COEFFICIENTS)
    if fn is not None and tuple(fn.shape) != expected:
        raise ConfigError(f"projections have shape {tuple(fn.shape)}; expected {expected}")


def to_planes(coefficients: Tensor, x: Tensor) -> Tensor:
    """(b, t, ...) -> (k, T) float32; costs nothing where it was made by `from_planes`."""
    tokens = x.shape[0] * x.shape[1]
    # Not -1: it is ambiguous for no tokens.
    k = math.prod(coefficients.shape[2:])
    return coefficients.reshape(tokens, k).t().float().contiguous()


def from_planes(x: Tensor, *shape: int) -> Tensor:
    """New (b, t, *shape) float32, a view of planes."""
    planes = x.new_empty((*shape, *x.shape[:2]), dtype=torch.float32)
    return planes.movedim((-2, -1), (0, 1))


def planes(view: Tensor) -> Tensor:
    """What is below a `from_planes`, contiguous."""
    return view.movedim((0, 1), (-2, -1))


def entered(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """un, pre, post, res and saved for streams x, not yet filled."""
    b, t, n, c = x.shape
    return (
        x.new_empty(b, t, c),
        from_planes(x, n),
        from_planes(x, n),
        from_planes(x, n, n),
        x.new_empty(SAVED, b * t, dtype=torch.float32),
    )


def launch(kernel: Any, x: Tensor, options: dict[str, int], *args: Any, **constants: Any) -> None:
    b, t, _, c = x.shape
    blocks = -(-b * t // options["BLOCK_T"])
    if blocks:
        with torch.cuda.device_of(x):
            kernel[(blocks,)](*args, C=c, **constants, **options)


Crossing = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of the sublayer that is left: y (b, t, c), post (b, t, n), res (b, t, n, m) and gate (b,)."""


def laid_out(crossing: Crossing, x: Tensor) -> Crossing:
    """As the kernels read them: coefficients in planes, all contiguous."""
    y, post, res, gate = crossing
    return y.contiguous(), to_planes(post, x), to_planes(res, x), gate.contiguous()


def forward(
    x: Tensor,
    crossing: Crossing | None,
    fn: Tensor,
    base: Tensor,
    strength: Tensor,
    eps: float,
    tau: float,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    check(x, fn)
    x = x.contiguous()
    out = un, pre, post, res, saved = entered(x)
    # A kernel that only enters has no use for the first five; any pointer will do.
    old: tuple[Tensor, ...] = (x, saved, saved, saved)
    new = x
    if crossing is not None:
        old = laid_out(crossing, x)
        new = torch.empty_like(x)
    launch(
        kernels().boundary_forward,
        x,
        FORWARD,
        x,
        *old,
        fn.contiguous(),
        base.contiguous(),
        strength.contiguous(),
        new,
        un,
        *(planes(view) for view in (pre, post, res)),
        saved,
        x.shape[0] * x.shape[1],
        x.shape[1],
        eps,
        1.0 / tau,
        CROSS=crossing is not None,
    )
    return new, out


class Gradients(NamedTuple):
    """Of the inputs that are on both sides of a boundary, and of the parameters."""

    dx: Tensor
    dy: Tensor
    dpost: Tensor
    dres: Tensor
    dgate: Tensor
    dfn: Tensor
    dbase: Tensor
    dstrength: Tensor


def backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    x: Tensor,
    crossing: Crossing | None,
    new: Tensor,
    fn: Tensor,
    strength: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    tau: float,
) -> Gradients:
    b, t, n, c = x.shape
    x, new, strength = x.contiguous(), new.contiguous(), strength.contiguous()
    pre, post, res, saved = outputs
    dnew, dun, dpost_out, dres_out = grads
    if dun is None:
        dun = x.new_zeros(b, t, c)
    dpost_out = torch.zeros_like(post) if dpost_out is None else dpost_out
    dres_out = torch.zeros_like(res) if dres_out is None else dres_out
    draw = x.new_empty(COEFFICIENTS, b * t, dtype=torch.float32)
    dx, dy, dgate = torch.empty_like(x), x, draw
    dpost, dres = post, res
    before: tuple[Tensor, ...] = (x, draw, draw, draw)
    if crossing is not None:
        before = laid_out(crossing, x)
        dnew = torch.zeros_like(x) if dnew is None else dnew.contiguous()
        dy = torch.empty_like(before[0])
        dpost, dres = from_planes(x, n), from_planes(x, n, n)
        dgate = x.new_empty(b, t, dtype=torch.float32)
    launch(
        kernels().boundary_backward,
        x,
        BACKWARD,
        x if dnew is None else dnew,
        dun.contiguous(),
        to_planes(dpost_out, x),
        to_planes(dres_out, x),
        x,
        *before,
        fn.contiguous(),
        strength,
        *(to_planes(view, x) for view in (pre, post, res)),
        saved,
        dx,
        dy,
        planes(dpost),
        planes(dres),
        dgate,
        draw,
        b * t,
        t,
        1.0 / tau,
        CROSS=crossing is not None,
    )
    dstrength = (draw * saved[:COEFFICIENTS] * saved[COEFFICIENTS]).sum(dim=1)
    dfn = projection_gradient(new, draw, strength, saved)
    return Gradients(dx, dy, dpost, dres, dgate, dfn, draw.sum(dim=1), dstrength)


def projection_gradient(new: Tensor, draw: Tensor, strength: Tensor, saved: Tensor) -> Tensor:
    """(n * c, k): new^T @ (draw * strength / RMS), summed in a fixed order."""
    b, t, n, c = new.shape
    tokens, block = b * t, PROJECTION["BLOCK_T"]
    columns = -(-n * c // PROJECTION["BLOCK_C"])
    splits = max(1, min(PROGRAMS // columns, -(-tokens // block)))
    per_split = max(1, -(-tokens // (splits * block))) * block
    partial = new.new_empty(splits, n * c, COEFFICIENTS, dtype=torch.float32)
    with torch.cuda.device_of(new):
        kernels().projection_gradient[(columns, splits)](
            new, draw, strength, saved, partial, tokens, per_split, C=c, **PROJECTION
        )
    return partial.sum(dim=0)
