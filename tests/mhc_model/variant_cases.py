"""The family of hyper-connections: its members, and their formulas in float64 under autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mhc_model import MHCConfig
from mhc_model.streams import HyperConnection, StreamHead

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "identity": {"projection": "identity"},
    "accepting": {"projection": "identity", "gates": "accept"},
    "kronecker": {"projection": "kronecker"},
    "free": {"projection": "free"},
    "static": {"dynamic": False},
    "static_lite": {"dynamic": False, "projection": "permutations"},
    "single_pass": {"single_pass": True},
    "single_pass_to_the_end": {"single_pass": True, "collapse": "learned"},
    "single_pass_free": {"single_pass": True, "projection": "free"},
    "learned_collapse": {"collapse": "learned"},
    "static_learned_collapse": {"dynamic": False, "collapse": "learned"},
    "still_learned_collapse": {"projection": "identity", "collapse": "learned"},
    "static_kronecker": {"dynamic": False, "projection": "kronecker"},
    "static_free": {"dynamic": False, "projection": "free"},
    "static_identity": {"dynamic": False, "projection": "identity"},
}
EPS = 1e-6


def made(fields: dict[str, Any], sublayer: int, n: int = 4, c: int = 6) -> HyperConnection:
    """A connection whose every parameter is random and counts."""
    generator = torch.Generator().manual_seed(sublayer)
    connection = HyperConnection(MHCConfig(n_streams=n, **fields), c, sublayer, EPS)
    with torch.no_grad():
        for parameter in connection.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return connection


def made_head(fields: dict[str, Any], n: int = 4, c: int = 6) -> StreamHead | None:
    """A collapse whose every parameter is random and counts, where the model has one."""
    config = MHCConfig(n_streams=n, **fields)
    if config.collapse == "mean" or config.single_pass:
        return None
    head, generator = StreamHead(config, c, EPS), torch.Generator().manual_seed(99)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return head


def sinkhorn(logits: Tensor) -> Tensor:
    p = torch.softmax(logits, dim=-1)
    for _ in range(600):
        p = p / p.sum(dim=-2, keepdim=True)
        p = p / p.sum(dim=-1, keepdim=True)
    return p


def mixture(logits: Tensor, n: int) -> Tensor:
    identity = torch.eye(n, dtype=logits.dtype)
    weights = torch.softmax(logits, dim=-1)
    orders = itertools.permutations(range(n))
    return sum(weights[..., i, None, None] * identity[list(o)] for i, o in enumerate(orders))


def factors(logits: Tensor) -> Tensor:
    """Each token's Kronecker product by torch.kron, with a softmax over both permutations."""
    found = []
    for row in logits.reshape(-1, logits.shape[-1]):
        product = torch.ones(1, 1, dtype=logits.dtype)
        for logit in row:
            stay, swap = torch.softmax(torch.stack([logit, torch.zeros_like(logit)]), dim=0)
            product = torch.kron(product, torch.stack([stay, swap, swap, stay]).view(2, 2))
        found.append(product)
    n = 2 ** logits.shape[-1]
    return torch.stack(found).view(*logits.shape[:-1], n, n)


def h_res(logits: Tensor, config: MHCConfig) -> Tensor:
    n = config.n_streams
    match config.projection:
        case "identity":
            return torch.eye(n, dtype=logits.dtype).expand(*logits.shape[:-1], n, n)
        case "permutations":
            return mixture(logits, n)
        case "kronecker":
            return factors(logits)
        case "free":
            return logits.unflatten(-1, (n, n))
        case "limit":
            return sinkhorn(logits.unflatten(-1, (n, n)))
    raise NotImplementedError(config.projection)


def coefficients(
    config: MHCConfig, parameters: dict[str, Tensor], x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """H_pre (T, n), H_post (T, n) and H_res (T, n, n) of streams x (T, n, c)."""
    n, raw = config.n_streams, parameters["base"].expand(len(x), -1)
    if config.dynamic:
        flat = x.flatten(1)
        normed = flat / (flat.square().mean(dim=1, keepdim=True) + EPS).sqrt()
        scale = parameters["scale"]
        sizes = torch.tensor([n, n, raw.shape[1] - 2 * n][: len(scale)])
        projected = normed @ parameters["fn"]
        if config.projection == "free":  # HC, arXiv:2409.19606
            projected = torch.tanh(projected)
        raw = raw + projected * scale.repeat_interleave(sizes)
    if config.projection == "free":
        return raw[:, :n], raw[:, n : 2 * n], h_res(raw[:, 2 * n :], config)
    pre, post = torch.sigmoid(raw[:, :n]), 2 * torch.sigmoid(raw[:, n : 2 * n])
    return pre, post, h_res(raw[:, 2 * n :], config)


def through_formulas(
    config: MHCConfig,
    parameters: Sequence[dict[str, Tensor]],
    e: Tensor,
    embedding: Tensor,
    gates: Tensor,
    sublayer: Callable[[Tensor], Tensor],
    head: dict[str, Tensor] | None = None,
) -> Tensor:
    """The streams as one (T, c) after every sublayer, from e (T, c) and gates (T, sublayers).

    One formula after another, in the dtype of e.
    """
    x = e[:, None] + embedding
    identity = torch.eye(config.n_streams, dtype=e.dtype)
    handed = identity[0].expand(len(e), -1)
    for k, own in enumerate(parameters):
        pre, post, res = coefficients(config, own, x)
        u = torch.einsum("ti,tic->tc", handed if config.single_pass else pre, x)
        handed = pre
        y = sublayer(u / (u.square().mean(dim=1, keepdim=True) + EPS).sqrt())
        gate = gates[:, k, None, None]
        mixing = (1 - gate) * identity + gate * res
        x = torch.einsum("tij,tic->tjc", mixing, x) + post[:, :, None] * y[:, None]
    if config.collapse == "mean":
        return x.mean(dim=1)
    if head is not None:
        raw = head["base"]
        if config.dynamic:
            flat = x.flatten(1)
            normed = flat / (flat.square().mean(dim=1, keepdim=True) + EPS).sqrt()
            raw = raw + normed @ head["fn"] * head["scale"]
        handed = torch.sigmoid(raw).expand(len(x), -1)
    return torch.einsum("ti,tic->tc", handed, x)


def through_connections(
    connections: Sequence[HyperConnection],
    e: Tensor,
    embedding: Tensor,
    gates: Tensor,
    sublayer: Callable[[Tensor], Tensor],
    head: StreamHead | None = None,
) -> Tensor:
    """The same as the decoder does it."""
    x, u, found = connections[0].start(e, embedding)
    for k, after in enumerate(connections[1:]):
        x, u, found = after.cross(x, sublayer(u), found, gates[:, k])
    return connections[-1].collapse(x, sublayer(u), found, gates[:, -1], head)
