"""What every baseline gets: training problems, a way to ask them, and a number of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evals.problems import Problem
from mhc_model.config import PolicyConfig
from mhc_model.policy import expand_actions
from rl.env import ProblemStream
from rl.rollouts import Asker, RolloutLog


@dataclass
class Bench:
    """Training problems and a budget; whoever learns on it cannot spend more.

    Attributes:
        asker: runs the model.
        problems: to learn from.
        observations: (problems, c) float32, what a contextual policy sees.
        policy: what an action sets.
        budget: rollouts in all.
        round_size: rollouts of one round, as of one iteration of PPO.
        seed: of the order of the problems and of everything that is drawn.
        log: keeps every rollout.
        used: rollouts so far.
        history: mean reward of every round.
    """

    asker: Asker
    problems: Sequence[Problem]
    observations: Tensor
    policy: PolicyConfig
    budget: int
    round_size: int
    seed: int
    log: RolloutLog
    used: int = 0
    history: list[float] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Rollouts that may still be spent."""
        return self.budget - self.used

    def generator(self) -> torch.Generator:
        """A generator of this seed."""
        return torch.Generator().manual_seed(self.seed)

    def draw(self, count: int) -> list[int]:
        """Indices of the next problems: the order in which PPO of the same seed sees them."""
        return ProblemStream(len(self.problems), self.seed).indices(self.used, count)

    def ask(self, indices: Sequence[int], actions: Tensor) -> Tensor:
        """As `ask_under`, of actions (n, a)."""
        return self.ask_under(indices, expand_actions(actions.clamp(0.0, 1.0), self.policy))

    def ask_under(self, indices: Sequence[int], gates: Tensor) -> Tensor:
        """Rewards (n,) float32 of problems under gates, at most `left` of them.

        Args:
            indices: of the problems.
            gates: (n, 2L), or (n, 2, 2L), those of prompt and answer.

        Raises:
            ValueError: if the budget does not cover them.
        """
        if len(indices) > self.left:
            raise ValueError(f"{len(indices)} rollouts asked for, {self.left} are left")
        rollouts = self.asker.ask(
            [self.problems[index] for index in indices],
            gates,
            first_index=self.used,
            iteration=len(self.history) + 1,
        )
        self.log.write(rollouts)
        self.used += len(rollouts)
        rewards = torch.tensor([rollout.reward for rollout in rollouts])
        self.history.append(float(rewards.mean()))
        return rewards
