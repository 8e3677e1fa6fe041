"""From one sublayer to the next: fused, or as a call of the module where someone listens.

The kernels leave a sublayer and enter the next in one step, so no module is called and no hook of
torch fires. A connection with hooks is called instead, as `connection(x)` with the streams
x (b, t, n, c). What a forward hook sees, and may change, are these streams and what
`HyperConnection.forward` gives: what the sublayer reads, and H_pre, H_post and H_res.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.modules import module as every_module

from mhc_model.streams import Coefficients, HyperConnection

_OWN = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = tuple(f"_global{name}" for name in _OWN)

Entered = tuple[Tensor, Tensor, Coefficients]
"""Flat over tokens: streams (b t, n, c), what the sublayer reads (b t, c), its coefficients."""


def is_watched(connection: HyperConnection) -> bool:
    """Whether calling the module would call a hook."""
    return any(getattr(connection, name, None) for name in _OWN) or any(
        getattr(every_module, name, None) for name in _GLOBAL
    )


def start(
    connection: HyperConnection, e: Tensor, stream_embedding: Tensor, shape: tuple[int, int]
) -> Entered:
    """`HyperConnection.start` of (b t, c) embeddings, b and t the shape."""
    if not is_watched(connection):
        return connection.start(e, stream_embedding)
    return _called(connection, e[:, None] + stream_embedding.to(e.dtype), shape)


def cross(
    connection: HyperConnection,
    x: Tensor,
    y: Tensor,
    previous: Coefficients,
    gate: Tensor,
    shape: tuple[int, int],
) -> Entered:
    """`HyperConnection.cross` into a connection; arguments as there, flat over tokens."""
    if not is_watched(connection):
        return connection.cross(x, y, previous, gate)
    handed = previous.pre.unflatten(0, shape) if connection.config.single_pass else None
    return _called(connection, connection.leave(x, y, previous, gate), shape, handed)


def _called(
    connection: HyperConnection, x: Tensor, shape: tuple[int, int], handed: Tensor | None = None
) -> Entered:
    given = {} if handed is None else {"handed": handed}
    u, coefficients = connection(x.unflatten(0, shape), **given)
    return x, u.flatten(0, 1), Coefficients(*(value.flatten(0, 1) for value in coefficients))
