"""Sampling follows its distribution, and a row's noise is its own."""

from __future__ import annotations

import math

import pytest
import torch

from mhc_model.engine.sampling import counter_uniform, sample


def draw_many(logits: torch.Tensor, n: int, temperature=1.0, top_k=0, top_p=1.0) -> torch.Tensor:
    """(v,) how often each token is drawn from one row of logits in n draws."""
    tokens = sample(
        logits.expand(n, -1),
        torch.full((n,), float(temperature)),
        torch.full((n,), top_k),
        torch.full((n,), top_p),
        torch.arange(n) // 10,
        torch.arange(n) % 10,
    )
    return torch.bincount(tokens, minlength=len(logits))


def kept(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """(v,) the distribution that temperature, then top-k, then top-p leave, by a loop."""
    order = sorted(range(len(logits)), key=lambda i: -float(logits[i]))
    order = order[:top_k] if top_k else order
    mass = {i: math.exp(float(logits[i]) / temperature) for i in order}
    total = sum(mass.values())
    chosen, reached = {}, 0.0
    for i in order:
        if reached >= top_p and top_p < 1.0:
            break
        chosen[i] = mass[i]
        reached += mass[i] / total
    result = torch.zeros(len(logits), dtype=torch.float64)
    for i, value in chosen.items():
        result[i] = value / sum(chosen.values())
    return result


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (2.0, 0, 1.0),
        (1.0, 4, 1.0),
        (1.0, 0, 0.7),
        (1.5, 6, 0.8),
        (1.0, 1, 1.0),
        (1.0, 0, 1e-6),
        (1.0, 100, 1.0),
    ],
)
def test_draws_follow_the_distribution(temperature, top_k, top_p):
    logits = 1.5 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    n = 40_000
    expected = n * kept(logits, temperature, top_k, top_p)
    counts = draw_many(logits, n, temperature, top_k, top_p).double()
    inside = expected > 0
    assert counts[~inside].sum() == 0
    chi_square = ((counts - expected)[inside] ** 2 / expected[inside]).sum().item()
    # 99.99 % quantile for up to 11 degrees of freedom.
    assert chi_square < 37.4


def test_temperature_zero_is_greedy_beside_others():
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    temperature = torch.tensor([0.0, 1.0, 0.0, 5.0, 0.0, 0.0])
    zeros = torch.zeros(6, dtype=torch.int64)
    tokens = sample(logits, temperature, zeros, torch.ones(6), torch.arange(6), zeros)
    greedy = temperature == 0
    assert torch.equal(tokens[greedy], logits.argmax(dim=-1)[greedy])


def test_noise_is_uniform_and_independent_of_the_batch():
    seeds, index = torch.arange(200), torch.arange(200) % 7
    noise = counter_uniform(seeds, index, 500)
    assert noise.dtype == torch.float64
    assert ((noise > 0) & (noise < 1)).all()
    histogram = torch.histc(noise.flatten(), bins=20, min=0, max=1)
    assert ((histogram - 5000) ** 2 / 5000).sum() < 55  # 99.99 % of chi-square with 19 degrees
    for axis in (0, 1):
        a, b = noise.narrow(axis, 0, 199), noise.narrow(axis, 1, 199)
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 0.02
    assert torch.equal(counter_uniform(seeds[50:51], index[50:51], 500)[0], noise[50])
    large = torch.tensor([(1 << 63) - 1, (1 << 63) - 2])
    assert (counter_uniform(large, torch.zeros(2, dtype=torch.int64), 50).diff(dim=0) != 0).all()


def test_a_vanishing_top_p_keeps_the_likeliest_token():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    drawn = sample(
        logits,
        temperature=torch.tensor([1.0]),
        top_k=torch.tensor([0]),
        top_p=torch.tensor([1e-60]),
        seed=torch.tensor([0]),
        index=torch.tensor([0]),
    )
    assert drawn.tolist() == [1]
