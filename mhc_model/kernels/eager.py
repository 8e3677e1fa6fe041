"""Hyper-connections in torch operations, forward and backward, for every device.

`enter` goes from the streams to the input of a sublayer, `leave` from its output back into the
streams, and `cross` does both at once between two sublayers. The backward passes are written by
hand: recorded by autograd, the streams would be copied for every product and their gradient summed
up from five parts.

Axes: b batch, t token, n streams (senders), m streams (receivers), c channel, k = 2n + the number
of logits of H_res, the coefficients of a token. T = b * t tokens; inside, streams are (T, n, c).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PART = 256  # tokens


class Entry(NamedTuple):
    """What a sublayer reads of the streams, and the coefficients that come with it."""

    u: Tensor  # (b, t, c), dtype of the streams: sum_i H_pre_i x_i
    pre: Tensor  # (b, t, n) float32 in [0, 1]
    post: Tensor  # (b, t, n) float32 in [0, 2]
    logits: Tensor  # (b, t, k - 2n) float32: those of H_res


def enter(x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float) -> Entry:
    """Reads the streams.

    Args:
        x: (b, t, n, c) streams, any floating dtype.
        fn: (n * c, k) float32 projections.
        base: (k,) float32 biases.
        strength: (k,) float32, what each column of the projection is multiplied by.
        eps: of the RMSNorm over all n * c channels.
    """
    return Entry(*_Enter.apply(x, fn, base, strength, eps))


def start(
    e: Tensor, stream_embedding: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float
) -> tuple[Tensor, Entry]:
    """Makes the streams, x_n = e + stream_embedding_n, and enters the first sublayer.

    Args:
        e: (b, t, c) token embeddings.
        stream_embedding: (n, c), cast to the dtype of e.
        fn: this and the others as in `enter`.
    """
    x, *entry = _Start.apply(e, stream_embedding, fn, base, strength, eps)
    return x, Entry(*entry)


def leave(x: Tensor, y: Tensor, post: Tensor, mixing: Tensor) -> Tensor:
    """New streams: x'_m = sum_n mixing[n, m] x_n + post_m y.

    Args:
        x: (b, t, n, c) streams before the sublayer.
        y: (b, t, c) output of the sublayer.
        post: (b, t, n) float32.
        mixing: (b, t, n, m) float32, the gated H_res.

    Returns:
        (b, t, n, c), dtype of x.
    """
    new: Tensor = _Leave.apply(x, y, post, mixing)
    return new


def cross(
    x: Tensor,
    y: Tensor,
    post: Tensor,
    mixing: Tensor,
    fn: Tensor,
    base: Tensor,
    strength: Tensor,
    eps: float,
) -> tuple[Tensor, Entry]:
    """`leave` one sublayer and `enter` the next; gives the new streams and the entry."""
    new, *entry = _Cross.apply(x, y, post, mixing, fn, base, strength, eps)
    return new, Entry(*entry)


def collapse(x: Tensor, y: Tensor, post: Tensor, mixing: Tensor) -> Tensor:
    """The mean of the streams that `leave` gives, (b, t, c), without making them."""
    total: Tensor = _Collapse.apply(x, y, mixing.mean(dim=-1), post.mean(dim=-1))
    return total


class _Saved(NamedTuple):
    """What `_enter_backward` needs beside the streams and the parameters; all (T, ...) float32."""

    inverse: Tensor  # (T, 1): 1 / RMS
    projected: Tensor  # (T, k): RMSNorm(x) @ fn
    sigmoids: Tensor  # (T, 2n)


def _enter(
    x: Tensor, fn: Tensor, base: Tensor, strength: Tensor, eps: float
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], _Saved]:
    b, t, n, c = x.shape
    x3 = x.reshape(b * t, n, c).float()
    x2 = x3.view(b * t, n * c)
    # The norm has no weight, so it commutes with the projection: it scales k numbers, not n * c.
    inverse = torch.linalg.vector_norm(x2, dim=1, keepdim=True).square()
    inverse = torch.rsqrt(inverse / (n * c) + eps)
    projected = (x2 @ fn) * inverse
    raw = torch.addcmul(base, projected, strength)
    sigmoids = torch.sigmoid(raw[:, : 2 * n])
    pre = sigmoids[:, :n]
    # n scaled additions: a batched product of (1, n) by (n, c) is no faster and less exact in bf16.
    u = x3[:, 0] * pre[:, :1]
    for i in range(1, n):
        u = torch.addcmul(u, x3[:, i], pre[:, i : i + 1])
    outputs = (
        u.to(x.dtype).view(b, t, c),
        pre.reshape(b, t, n),
        (2.0 * sigmoids[:, n:]).view(b, t, n),
        raw[:, 2 * n :].reshape(b, t, -1),
    )
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
            total = torch.addmm(grad[part].view(-1, n * c), self.projected[part], fn.mT)
        total = total.addcmul_(x.view(-1, n * c), self.radial[part]).view(-1, n, c)
        return total.addcmul_(self.pre[part], self.du[part])


def _enter_backward(
    x: Tensor, strength: Tensor, saved: _Saved, grads: tuple[Tensor, ...]
) -> tuple[_EnterGradient, tuple[Tensor, Tensor, Tensor]]:
    """Gradients of x (T, n, c) float32, and of fn, base and strength."""
    tokens, n, c = x.shape
    inverse, projected, sigmoids = saved
    x2 = x.view(tokens, n * c)
    du, dpre, dpost, dlogits = grads
    du = du.reshape(tokens, 1, c).float()
    dpre = dpre.reshape(tokens, n) + torch.bmm(x, du.mT).view(tokens, n)
    slope = sigmoids * (1.0 - sigmoids)
    draw = torch.cat(
        [
            dpre * slope[:, :n],
            dpost.reshape(tokens, n) * (2.0 * slope[:, n:]),
            dlogits.reshape(tokens, -1),
        ],
        dim=1,
    )
    dprojected = draw * strength
    # d(1 / RMS) / dx = -x / RMS^3 / (n c), and projected = (x fn) / RMS.
    radial = (dprojected * projected).sum(dim=1, keepdim=True)
    radial = radial * inverse.square() * (-1.0 / (n * c))
    dprojected = dprojected * inverse
    parts = _EnterGradient(dprojected, radial, sigmoids[:, :n, None], du)
    return parts, (x2.mT @ dprojected, draw.sum(dim=0), (draw * projected).sum(dim=0))


def _leave(x: Tensor, y: Tensor, post: Tensor, mixing: Tensor) -> Tensor:
    b, t, n, c = x.shape
    x3, y3 = x.reshape(b * t, n, c).float(), y.reshape(b * t, 1, c).float()
    new = torch.bmm(mixing.reshape(b * t, n, n).mT, x3)
    new = new.addcmul_(post.reshape(b * t, n, 1), y3)
    return new.to(x.dtype).view(b, t, n, c)


def _leave_backward(
    x: Tensor, y: Tensor, post: Tensor, mixing: Tensor, grad: Callable[[slice], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, post and mixing, where grad(part) is that of the new streams (T, n, c)."""
    b, t, n, c = x.shape
    x3, y3 = x.reshape(b * t, n, c).float(), y.reshape(b * t, c, 1).float()
    post, mixing = post.reshape(b * t, 1, n), mixing.reshape(b * t, n, n)
    pieces = []
    parts = _parts(b * t)
    dx = None if len(parts) == 1 else torch.empty_like(x3)
    for part in parts:
        d = grad(part)
        if dx is None:
            dx = torch.bmm(mixing[part], d)
        else:
            torch.bmm(mixing[part], d, out=dx[part])
        pieces.append((torch.bmm(post[part], d), torch.bmm(d, y3[part]), torch.bmm(x3[part], d.mT)))
    dy, dpost, dmixing = (
        piece[0] if len(piece) == 1 else torch.cat(piece) for piece in zip(*pieces, strict=True)
    )
    assert dx is not None
    return (
        dx.to(x.dtype).view(b, t, n, c),
        dy.to(y.dtype).view(b, t, c),
        dpost.view(b, t, n),
        dmixing.view(b, t, n, n),
    )


def _parts(tokens: int) -> list[slice]:
    """Tokens in parts whose streams stay in a core's cache, and need no fresh memory each time.

    A compiler fuses the operations instead, and a GPU wants all tokens at once.
    """
    if torch.compiler.is_compiling() or tokens <= PART:
        return [slice(None)]
    return [slice(first, first + PART) for first in range(0, tokens, PART)]


def _flat(x: Tensor) -> Tensor:
    """(b, t, n, c) -> (T, n, c) float32, a view where it can be."""
    return x.reshape(-1, *x.shape[2:]).float()


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
            flat = _flat(x)
            parts, others = _enter_backward(flat, strength, _Saved(*saved), grads)
            dx = parts.add_to(None, flat, fn, slice(None))
        return dx.to(x.dtype).view_as(x), *others, None


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
        x = e[:, :, None] + stream_embedding.to(e.dtype)
        outputs, saved = _enter(x, fn, base, strength, eps)
        ctx.save_for_backward(x, fn, strength, *saved)
        ctx.dtype = stream_embedding.dtype
        return x, *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, fn, strength, *saved = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            flat, grad_x = _flat(x), _flat(grad_x)
            gradient, others = _enter_backward(flat, strength, _Saved(*saved), grads)
            pieces, dstream = [], torch.zeros_like(flat[0])
            for part in _parts(len(flat)):
                d = gradient.add_to(grad_x, flat, fn, part)
                pieces.append(d.sum(dim=1))
                dstream = dstream + d.sum(dim=0)
            de = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            shape = (*x.shape[:2], x.shape[3])
        return de.to(x.dtype).view(shape), dstream.to(ctx.dtype), *others, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, post: Tensor, mixing: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, post, mixing)
        return _leave(x, y, post, mixing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, y, post, mixing = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            flat = _flat(grad)
            return _leave_backward(x, y, post, mixing, lambda part: flat[part])


class _Cross(torch.autograd.Function):
    """One function for a whole boundary: the gradient of the streams between is never stored."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        post: Tensor,
        mixing: Tensor,
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
            new, grad_new = _flat(new), _flat(grad_new)
            parts, others = _enter_backward(new, strength, _Saved(*saved), grads)
            into = _leave_backward(
                x, y, post, mixing, lambda part: parts.add_to(grad_new, new, fn, part)
            )
        return *into, *others, None


class _Collapse(torch.autograd.Function):
    """sum_n weights_n x_n + share y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weights: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, weights, share)
        total = y.float() * share[..., None]
        for i in range(x.shape[2]):
            total = total.addcmul_(x[:, :, i].float(), weights[..., i : i + 1])
        return total.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, y, weights, share = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            grad = grad.float()
            dx = (weights[..., None] * grad[:, :, None]).to(x.dtype)
            dweights = torch.bmm(_flat(x), grad.reshape(-1, grad.shape[2], 1)).view_as(weights)
            dshare = (grad * y.float()).sum(dim=-1)
            return dx, (grad * share[..., None]).to(y.dtype), dweights, dshare
