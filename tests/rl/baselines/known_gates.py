"""Problems whose best gates are known, and an asker that rewards them."""

from __future__ import annotations

import numpy as np
import torch

from evals.problems import load_problems
from mhc_model.config import PolicyConfig
from rl.baselines import (
    Bench,
)
from rl.rollouts import Rollout, RolloutLog

PROBLEMS = load_problems("builtin:1", "train", 64)
POLICY = PolicyConfig(action_space="per_layer", n_layers=2, observation_dim=4, hidden=(32,))
# What a contextual policy sees: its first entry says which gate the problem needs.
OBSERVATIONS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
WANTED = {
    problem.id: float(row[0] > 0) for problem, row in zip(PROBLEMS, OBSERVATIONS, strict=True)
}


class GateGrader:
    """An asker whose reward is 1 with a probability that falls with the distance of the gates from
    the wanted ones: of layer 0 `first` (or what the problem needs), of layer 1 always 0.8."""

    def __init__(self, first: float | None) -> None:
        self.first = first
        self.random = np.random.default_rng(0)
        self.asked = 0

    def ask(self, problems, gates, first_index=0, iteration=0):
        assert first_index == self.asked, "positions follow each other"
        self.asked += len(problems)
        return [
            self._rollout(problem, row, first_index + position, iteration)
            for position, (problem, row) in enumerate(zip(problems, gates, strict=True))
        ]

    def _rollout(self, problem, gates, index, iteration):
        first = WANTED[problem.id] if self.first is None else self.first
        distance = (abs(float(gates[0]) - first) + abs(float(gates[2]) - 0.8)) / 2
        reward = float(self.random.random() > 1.5 * distance)
        fields = {"finish_reason": "stop", "tokens": 1, "replica": 0, "attempts": 1}
        row = tuple(map(float, gates))
        return Rollout(index, iteration, problem.id, row, completion="", reward=reward, **fields)


def bench(tmp_path, first: float | None, budget: int = 3000) -> Bench:
    log = RolloutLog(tmp_path, 0)
    return Bench(GateGrader(first), PROBLEMS, OBSERVATIONS, POLICY, budget, 256, 3, log)
