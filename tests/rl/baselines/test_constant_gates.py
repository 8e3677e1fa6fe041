"""Baselines on rewards whose best gates are known, and within their budget."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from evals.tasks.gsm8k import prompt_tokens
from evals.tasks.gsm8k_pure import load_problems
from mhc_model import load_checkpoint
from mhc_model.config import PolicyConfig
from rl.baselines import (
    AnswerLoss,
    Bench,
    best_of_grid,
    cross_entropy_search,
    reinforce,
    tune_constant,
    tune_policy,
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


def test_the_best_of_a_grid_is_asked_on_the_same_problems(tmp_path):
    own = bench(tmp_path, first=0.8, budget=1001)
    assert best_of_grid(own, (0.0, 0.25, 0.75, 1.0)).tolist() == [0.75, 0.75]
    assert own.used == 1000
    rows = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").open()]
    problems = [[row["problem"] for row in rows[k * 250 :][:250]] for k in range(4)]
    assert problems[0] == problems[1] == problems[2] == problems[3]


def test_cross_entropy_search_finds_one_vector(tmp_path):
    own = bench(tmp_path, first=0.1)
    found = cross_entropy_search(own, candidates=32, elite=0.25)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.8]), atol=0.15, rtol=0)
    assert 3000 - 256 < own.used <= 3000


def test_reinforce_learns_what_depends_on_the_problem(tmp_path):
    own = bench(tmp_path, first=None, budget=6000)
    policy = reinforce(own, lr=0.01, batch=64, entropy=0.0)
    assert 6000 - 64 < own.used <= 6000
    with torch.no_grad():
        gates = policy(OBSERVATIONS)
    sign = OBSERVATIONS[:, 0] > 0
    assert float(gates[sign, 0].mean() - gates[~sign, 0].mean()) > 0.4
    assert float(gates[:, 1].mean()) > 0.65


def test_nobody_spends_more_than_the_budget(tmp_path):
    own = bench(tmp_path, first=0.5, budget=10)
    with pytest.raises(ValueError, match="11 rollouts asked for, 10 are left"):
        own.ask(own.draw(11), torch.full((11, 2), 0.5))


@pytest.fixture
def loss(checkpoint) -> AnswerLoss:
    loaded = load_checkpoint(checkpoint)
    return AnswerLoss(loaded.model, loaded.tokenizer, PROBLEMS[:8])


def test_the_loss_counts_the_answer_and_its_end_only(checkpoint, loss):
    """One problem by hand, then two of other lengths together: padding changes nothing."""
    loaded = load_checkpoint(checkpoint)
    gates = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    by_hand, counts = [], []
    for row, problem in enumerate(PROBLEMS[:2]):
        prompt = prompt_tokens(loaded.tokenizer, problem)
        answer = [*loaded.tokenizer.encode(f" {problem.answer}"), loaded.tokenizer.eos_id]
        tokens = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = loaded.model(tokens[:, :-1], gates[row : row + 1])[0, len(prompt) - 1 :]
        by_hand.append(F.cross_entropy(logits, torch.tensor(answer)))
        counts.append(len(answer))
        torch.testing.assert_close(loss([row], gates[row : row + 1]).detach(), by_hand[-1])
    mean = sum(c * v for c, v in zip(counts, by_hand, strict=True)) / sum(counts)
    torch.testing.assert_close(loss([0, 1], gates).detach(), mean)


def test_gradients_move_the_gates_and_nothing_else(loss):
    before = {name: value.clone() for name, value in loss.model.state_dict().items()}
    policy = PolicyConfig(action_space="per_sublayer", n_layers=2, observation_dim=32, hidden=(8,))
    actions, losses = tune_constant(loss, policy, budget=160, batch=8, lr=0.1, seed=0)
    learned = torch.sigmoid(before["gate_logits"])
    assert losses[-1] < losses[0], "the same eight problems at every step"
    assert (actions - learned).abs().max() > 0.1
    network, losses = tune_policy(
        loss, policy, torch.randn(8, 32), budget=80, batch=8, lr=0.01, seed=0
    )
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in loss.model.parameters())
    for name, value in loss.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert network.config == policy
