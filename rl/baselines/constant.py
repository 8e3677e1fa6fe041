"""Gates that do not depend on the problem: the best of a grid, and a search by cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

from rl.baselines.bench import Bench

# The sampling distribution of the search never gets narrower than this.
LEAST_SPREAD = 0.05


def best_of_grid(bench: Bench, candidates: Sequence[Tensor]) -> Tensor:
    """The gates with the highest mean reward; all are asked the same problems.

    Args:
        bench: whose budget is shared out evenly.
        candidates: (2L,) gates each, or (2, 2L), those of prompt and answer.

    Returns:
        The best of them.
    """
    each = bench.budget // len(candidates)
    indices = bench.draw(each)
    earned = [
        float(bench.ask_under(indices, gates.expand(each, *gates.shape)).mean())
        for gates in candidates
    ]
    return candidates[max(range(len(candidates)), key=earned.__getitem__)]


def cross_entropy_search(bench: Bench, candidates: int, elite: float) -> Tensor:
    """One vector for all problems, by the cross-entropy method (Rubinstein 1999): a bandit
    without context.

    A round draws candidates from independent normal distributions, cut to [0, 1], asks each an
    equal share of problems, and moves the distributions to the candidates that earned most.

    Args:
        bench: rounds of its `round_size` until its budget is spent.
        candidates: vectors of a round.
        elite: share of them that the next round is drawn like.

    Returns:
        (a,) float32 actions: the mean of the last distribution.
    """
    generator = bench.generator()
    mean = torch.full((bench.policy.n_actions,), 0.5)
    spread = torch.full_like(mean, 0.35)
    each = max(1, bench.round_size // candidates)
    while bench.left >= candidates * each:
        noise = torch.randn(candidates, len(mean), generator=generator)
        tried = (mean + spread * noise).clamp(0.0, 1.0)
        actions = repeat(tried, "p a -> (p m) a", m=each)
        rewards = bench.ask(bench.draw(len(actions)), actions)
        earned = rearrange(rewards, "(p m) -> p m", m=each).mean(1)
        # The order of equal ones must not favour those that were drawn first.
        ties = 1e-6 * torch.rand(candidates, generator=generator)
        best = tried[(earned + ties).topk(max(2, round(elite * candidates))).indices]
        mean = 0.3 * mean + 0.7 * best.mean(0)
        spread = 0.3 * spread + 0.7 * best.std(0).clamp(min=LEAST_SPREAD)
    return mean
