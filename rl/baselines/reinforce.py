"""REINFORCE (Williams 1992) with the policy network of PPO: what clipping and epochs add to it."""

from __future__ import annotations

import torch
from torch.distributions import Beta

from mhc_model.policy import GatePolicy
from rl.baselines.bench import Bench

EDGE = 1e-6  # a draw of exactly 0 or 1 would have a log-density of minus infinity
BASELINE_DECAY = 0.9


def reinforce(bench: Bench, lr: float, batch: int, entropy: float) -> GatePolicy:
    """A contextual policy: one step of Adam for every `batch` rollouts, each used once.

    The baseline is the running mean of the rewards.

    Args:
        bench: its budget is spent.
        lr: of Adam.
        batch: rollouts of one step.
        entropy: weight of the entropy bonus, summed over the gates.
    """
    with torch.random.fork_rng():
        torch.manual_seed(bench.seed)
        policy = GatePolicy(bench.policy)
        optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
        mean: float | None = None
        while bench.left >= batch:
            indices = bench.draw(batch)
            distribution = Beta(*policy.concentrations(bench.observations[indices]))
            actions = distribution.sample().clamp(EDGE, 1.0 - EDGE)
            rewards = bench.ask(indices, actions)
            mean = float(rewards.mean()) if mean is None else mean
            gain = (rewards - mean) * distribution.log_prob(actions).sum(-1)
            loss = -(gain + entropy * distribution.entropy().sum(-1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean = BASELINE_DECAY * mean + (1.0 - BASELINE_DECAY) * float(rewards.mean())
    return policy.eval()
