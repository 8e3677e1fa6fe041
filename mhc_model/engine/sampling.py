"""Batched sampling: each row has its own temperature, min-p, top-k, top-p and seed.

Random numbers come from a counter, not from a generator's state: token i of a request with seed s
is drawn with a number that depends on (s, i) alone. So a request gives the same tokens whoever
shares its batch, and no row costs a Python call.

Axes: b row, v vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

LAST = 1.0 - 2.0**-40


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    index: Tensor,
    *,
    greedy: bool | None = None,
    truncated: bool | None = None,
    min_p: Tensor | None = None,
) -> Tensor:
    """Draws one token a row.

    Args:
        logits: (b, v) float32.
        temperature: (b,) float32 >= 0; 0 is greedy.
        top_k: (b,) int64; keeps the k likeliest tokens, 0 keeps all.
        top_p: (b,) float32 in (0, 1]; keeps the smallest set of likeliest tokens whose
            probability (after top_k, at this temperature) reaches top_p.
        seed: (b,) int64.
        index: (b,) int64, how many tokens the row has drawn so far.
        greedy: whether all temperatures are 0; None looks, which waits for a GPU.
        truncated: whether some row has a top_k, top_p or min_p; None looks.
        min_p: (b,) float32 in [0, 1]; leaves out tokens whose probability (at this temperature) is
            below this share of the likeliest one's, before top_k and top_p. None: no row has one.

    Returns:
        (b,) int64 token ids.
    """
    likeliest = logits.argmax(dim=-1)
    if bool((temperature == 0.0).all()) if greedy is None else greedy:
        return likeliest
    scaled = logits / temperature.clamp(min=1e-6)[:, None]
    if truncated is None:
        truncated = bool((top_k > 0).any()) or bool((top_p < 1.0).any())
        truncated = truncated or (min_p is not None and bool((min_p > 0).any()))
    if truncated:
        scaled = _truncate(scaled, top_k, top_p, min_p)
    # The number falls into one token's share of the cumulated distribution.
    shares = scaled.double().softmax(dim=-1).cumsum(dim=-1)
    number = counter_uniform(seed, index, 1) * shares[:, -1:]
    # From the right: a token without a share is never met. The last number below one can round up.
    drawn = torch.searchsorted(shares, number.clamp(max=LAST), right=True)[:, 0]
    return torch.where(temperature == 0.0, likeliest, drawn)


def _truncate(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor | None) -> Tensor:
    """(b, v) logits with -inf outside of min-p, top-k and top-p."""
    v = scaled.shape[-1]
    if min_p is not None:
        least = scaled.amax(dim=-1) + min_p.log()
        scaled = scaled.masked_fill(scaled < least[:, None], -torch.inf)
    values, order = scaled.sort(dim=-1, descending=True)
    rank = torch.arange(v, device=scaled.device)
    limit = torch.where(top_k == 0, v, top_k)[:, None]
    values = values.masked_fill(rank >= limit, -torch.inf)
    probability = values.softmax(dim=-1)
    # Mass of the likelier tokens: the token that crosses top_p is kept, so one always remains.
    before = probability.cumsum(dim=-1) - probability
    # Whatever top_p is, the likeliest token stays.
    outside = (before >= top_p[:, None]) & (top_p < 1.0)[:, None] & (rank > 0)
    values = values.masked_fill(outside, -torch.inf)
    return torch.empty_like(scaled).scatter_(-1, order, values)


# splitmix64 (Steele, Lea, Flood 2014) in wrapping int64; the constants are its own, as signed.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def counter_uniform(seed: Tensor, index: Tensor, size: int) -> Tensor:
    """(b, size) float64 uniform in (0, 1), a pure function of (seed, index, position).

    Args:
        seed: (b,) int64.
        index: (b,) int64.
        size: numbers a row.
    """
    key = _mix(_mix(seed * _GOLDEN) + index * _GOLDEN)
    position = torch.arange(1, size + 1, device=seed.device)
    bits = _shift(_mix(key[:, None] + position * _GOLDEN), 12)
    return (bits.double() + 0.5) * 2.0**-52
