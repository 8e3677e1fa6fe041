"""Hyper-connections in torch operations, forward and backward, for every device.

`enter` goes from the streams to the input of a sublayer, `leave` from its output back into the
streams, and `cross` does both at once between two sublayers. The backward passes are written by
hand: recorded by autograd, the streams would be copied for every product and their gradient summed
up from five parts.

Axes: T tokens (any leading shape, flattened), n streams (senders), m streams (receivers), c
channel, k = 2n + the number of logits of H_res, the coefficients of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PART = 256  # tokens


def precise(x: Tensor) -> Tensor:
    """In float32, or float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


class Entry(NamedTuple):
    """What a sublayer reads of the streams, and the coefficients that come with it."""

    u: Tensor  # (T, c), dtype of the streams: sum_i H_pre_i x_i
    pre: Tensor  # (T, n) float32 in [0, 1]
    post: Tensor  # (T, n) float32 in [0, 2]
    logits: Tensor  # (T, k - 2n) float32: those of H_res


def enter(x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float) -> Entry:
    """Reads the streams.

    Args:
        x: (T, n, c) streams, any floating dtype.
        fn: (n * c, k) float32 projections.
        base: (k,) float32 biases.
        strength: (k,) float32, what each column of the projection is multiplied by.
        eps: of the RMSNorm over all n * c channels.
    """
    return Entry(*_Enter.apply(x, fn, base, strength, eps))


def project(x: Tensor, fn: Tensor, eps: float) -> Tensor:
    """RMSNorm(vec(x)) @ fn, of streams (T, n, c) and projections (n * c, k): (T, k) float32.

    The part of `enter` that the rarer forms share, with a gradient by autograd.
    """
    n, c = x.shape[1:]
    flat = x.to(fn.dtype).view(-1, n * c)
    inverse = (flat.square().sum(dim=1, keepdim=True) + n * c * eps).rsqrt()
    return (flat @ fn) * (math.sqrt(n * c) * inverse)


def read(x: Tensor, pre: Tensor) -> Tensor:
    """sum_i pre_i x_i, of streams (T, n, c) and weights (T, n) float32: (T, c), dtype of x."""
    u: Tensor = _Read.apply(x, pre)
    return u


def start(
    e: Tensor, stream_embedding: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float
) -> tuple[Tensor, Entry]:
    """Makes the streams, x_n = e + stream_embedding_n, and enters the first sublayer.

    Args:
        e: (T, c) token embeddings.
        stream_embedding: (n, c), cast to the dtype of e.
        fn: this and the others as in `enter`.
    """
    x, *entry = _Start.apply(e, stream_embedding, fn, base, strength, eps)
    return x, Entry(*entry)


def leave(x: Tensor, y: Tensor, post: Tensor, mixing: Tensor | None) -> Tensor:
    """New streams: x'_m = sum_n mixing[n, m] x_n + post_m y.

    Args:
        x: (T, n, c) streams before the sublayer.
        y: (T, c) output of the sublayer.
        post: (T, n) float32.
        mixing: (T, n, m) float32, the gated H_res; None where it is I.

    Returns:
        (T, n, c), dtype of x.
    """
    new: Tensor = _Leave.apply(x, y, post, mixing)
    return new


def cross(
    x: Tensor,
    y: Tensor,
    post: Tensor,
    mixing: Tensor | None,
    fn: Tensor,
    base: Tensor,
    strength: Tensor,
    eps: float,
) -> tuple[Tensor, Entry]:
    """`leave` one sublayer and `enter` the next; gives the new streams and the entry."""
    new, *entry = _Cross.apply(x, y, post, mixing, fn, base, strength, eps)
    return new, Entry(*entry)


def collapse(x: Tensor, y: Tensor, post: Tensor, mixing: Tensor | None) -> Tensor:
    """The mean of the streams that `leave` gives, (T, c), without making them."""
    weights = torch.full_like(post, 1.0 / post.shape[-1]) if mixing is None else mixing.mean(dim=-1)
    total: Tensor = _Collapse.apply(x, y, weights, post.mean(dim=-1, keepdim=True))
    return total


class _Saved(NamedTuple):
    """What `_enter_backward` needs beside the streams and the parameters; all float32."""

    inverse: Tensor  # (T, 1): 1 / RMS / sqrt(n c)
    projected: Tensor  # (T, k): RMSNorm(x) @ fn
    sigmoids: Tensor  # (T, k)


def _enter(
    x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], _Saved]:
    n, c = x.shape[1:]
    streams = x.to(fn.dtype)
    flat = streams.view(-1, n * c)
    # The norm has no weight, so it commutes with the projection: it scales k numbers, not n * c.
    inverse = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    inverse = inverse.square_().add_(n * c * eps).rsqrt_()
    projected = torch.addmm(base, flat, fn, beta=0.0, alpha=math.sqrt(n * c)) * inverse
    raw = torch.addcmul(base, projected, strength)
    sigmoids = torch.sigmoid(raw)  # of H_res too: an operation less, for nothing
    pre = sigmoids[:, :n]
    u = torch.bmm(pre[:, None], streams).view(-1, c).to(x.dtype)
    outputs = (u, pre, 2.0 * sigmoids[:, n : 2 * n], raw[:, 2 * n :])
    return outputs, _Saved(inverse, projected, sigmoids)


class _EnterGradient(NamedTuple):
    """The gradient of the streams in three parts of rank k, 1 and 1, not yet multiplied out."""

    projected: Tensor  # (T, k), times fn
    radial: Tensor  # (T, 1), times x
    pre: Tensor  # (T, n, 1), times du
    du: Tensor  # (T, 1, c)

    def add_to(self, grad: Tensor | None, x: Tensor, fn: Tensor, part: slice) -> Tensor:
        """Sum of grad (T, n, c) and the three, of x (T, n, c), for the tokens of `part`."""
        x, n, c = x[part], *x.shape[1:]
        if grad is None:
            total = self.projected[part] @ fn.mT
        else:
            total = torch.addmm(grad[part].reshape(-1, n * c), self.projected[part], fn.mT)
        total = total.addcmul_(x.view(-1, n * c), self.radial[part]).view(-1, n, c)
        return total.addcmul_(self.pre[part], self.du[part])


def _enter_backward(
    x: Tensor, strength: Tensor, saved: _Saved, grads: tuple[Tensor, ...]
) -> tuple[_EnterGradient, tuple[Tensor, Tensor, Tensor]]:
    """Gradients of x (T, n, c) float32, and of fn, base and strength."""
    tokens, n, c = x.shape
    inverse, projected, sigmoids = saved
    du, dpre, dpost, dlogits = grads
    du = du.to(x.dtype)[:, None]
    dpre = dpre + torch.bmm(x, du.mT)[:, :, 0]
    used = sigmoids[:, : 2 * n]
    slope = used * (1.0 - used)
    draw = torch.cat([dpre * slope[:, :n], dpost * (2.0 * slope[:, n:]), dlogits], dim=1)
    dprojected = draw * strength
    # projected = sqrt(n c) (x fn) inverse, and d inverse / dx = -x inverse^3.
    radial = (dprojected * projected).sum(dim=1, keepdim=True) * inverse.square().neg_()
    dprojected = dprojected * (inverse * math.sqrt(n * c))
    parts = _EnterGradient(dprojected, radial, sigmoids[:, :n, None], du)
    dfn = x.view(tokens, n * c).mT @ dprojected
    return parts, (dfn, draw.sum(dim=0), (draw * projected).sum(dim=0))


def _leave(x: Tensor, y: Tensor, post: Tensor, mixing: Tensor | None) -> Tensor:
    streams = x.to(post.dtype)
    if mixing is None:
        return torch.addcmul(streams, post[:, :, None], y[:, None]).to(x.dtype)
    new = torch.bmm(mixing.mT, streams)
    return new.addcmul_(post[:, :, None], y[:, None]).to(x.dtype)


def _leave_backward(
    x: Tensor, y: Tensor, post: Tensor, mixing: Tensor | None, grad: Callable[[slice], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, y, post and mixing, where grad(part) is that of the new streams (T, n, c)."""
    streams, column, row = x.to(post.dtype), y.to(post.dtype)[:, :, None], post[:, None]
    pieces = []
    parts = _parts(x)
    dx = None if len(parts) == 1 else torch.empty_like(streams)
    for part in parts:
        d = grad(part)
        if dx is None:
            dx = d if mixing is None else torch.bmm(mixing[part], d)
        elif mixing is None:
            dx[part] = d
        else:
            torch.bmm(mixing[part], d, out=dx[part])
        dy, dpost = torch.bmm(row[part], d), torch.bmm(d, column[part])
        piece = (dy[:, 0], dpost[:, :, 0])
        pieces.append(piece if mixing is None else (*piece, torch.bmm(streams[part], d.mT)))
    dy, dpost, *dmixing = (
        piece[0] if len(piece) == 1 else torch.cat(piece) for piece in zip(*pieces, strict=True)
    )
    assert dx is not None
    return dx.to(x.dtype), dy.to(y.dtype), dpost, dmixing[0] if dmixing else None


def _parts(x: Tensor) -> list[slice]:
    """Tokens of x in parts: their streams stay in a core's cache and need no fresh memory.

    A compiler fuses the operations instead, and a GPU wants all tokens at once.
    """
    if torch.compiler.is_compiling() or len(x) <= PART or x.device.type != "cpu":
        return [slice(None)]
    return [slice(first, first + PART) for first in range(0, len(x), PART)]


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outputs, saved = _enter(x, fn, base, strength, eps)
        ctx.save_for_backward(x, fn, strength, *saved)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, fn, strength, *saved = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            streams = x.to(fn.dtype)
            gradient, others = _enter_backward(streams, strength, _Saved(*saved), grads)
            dx = gradient.add_to(None, streams, fn, slice(None))
        return dx.to(x.dtype), *others, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pre: Tensor) -> Tensor:
        ctx.save_for_backward(x, pre)
        return torch.bmm(pre[:, None], x.to(pre.dtype))[:, 0].to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, pre = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            grad = grad.to(pre.dtype)
            dx = (pre[:, :, None] * grad[:, None]).to(x.dtype)
            return dx, torch.bmm(x.to(pre.dtype), grad[:, :, None])[:, :, 0]


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        e: Tensor,
        stream_embedding: Tensor,
        fn: Tensor,
        base: Tensor,
        strength: Tensor,
        eps: float,
    ) -> tuple[Tensor, ...]:
        x = e[:, None] + stream_embedding.to(e.dtype)
        outputs, saved = _enter(x, fn, base, strength, eps)
        ctx.save_for_backward(x, fn, strength, *saved)
        ctx.dtype = stream_embedding.dtype
        return x, *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, fn, strength, *saved = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            streams, grad_x = x.to(fn.dtype), grad_x.to(fn.dtype)
            gradient, others = _enter_backward(streams, strength, _Saved(*saved), grads)
            pieces, dstream = [], streams.new_zeros(streams.shape[1:])
            for part in _parts(streams):
                d = gradient.add_to(grad_x, streams, fn, part)
                pieces.append(d.sum(dim=1))
                dstream = dstream + d.sum(dim=0)
            de = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return de.to(x.dtype), dstream.to(ctx.dtype), *others, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, post: Tensor, mixing: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, y, post, mixing)
        return _leave(x, y, post, mixing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, post, mixing = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            grad = grad.to(post.dtype)
            return _leave_backward(x, y, post, mixing, lambda part: grad[part])


class _Cross(torch.autograd.Function):
    """One function for a whole boundary: the gradient of the streams between is never stored."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        post: Tensor,
        mixing: Tensor | None,
        fn: Tensor,
        base: Tensor,
        strength: Tensor,
        eps: float,
    ) -> tuple[Tensor, ...]:
        new = _leave(x, y, post, mixing)
        outputs, saved = _enter(new, fn, base, strength, eps)
        ctx.save_for_backward(x, y, post, mixing, new, fn, strength, *saved)
        return new, *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_new: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, post, mixing, new, fn, strength, *saved = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            new, grad_new = new.to(fn.dtype), grad_new.to(fn.dtype)
            gradient, others = _enter_backward(new, strength, _Saved(*saved), grads)
            into = _leave_backward(
                x, y, post, mixing, lambda part: gradient.add_to(grad_new, new, fn, part)
            )
        return *into, *others, None


class _Collapse(torch.autograd.Function):
    """sum_n weights_n x_n + share y, for weights (T, n) and share (T, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weights: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, weights, share)
        total = torch.bmm(weights[:, None], x.to(weights.dtype))[:, 0]
        return total.addcmul_(y, share).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, y, weights, share = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            grad = grad.to(weights.dtype)
            dx = (weights[:, :, None] * grad[:, None]).to(x.dtype)
            dweights = torch.bmm(x.to(grad.dtype), grad[:, :, None])[:, :, 0]
            dshare = (grad * y.to(grad.dtype)).sum(dim=-1, keepdim=True)
            return dx, (grad * share).to(y.dtype), dweights, dshare
