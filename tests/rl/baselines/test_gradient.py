"""Gates by gradient of the right answers."""

from __future__ import annotations

import pytest
import torch
from known_gates import PROBLEMS
from torch.nn import functional as F

from evals.tasks import prompt_tokens
from mhc_model import load_checkpoint
from mhc_model.config import PolicyConfig
from rl.baselines import (
    AnswerLoss,
    tune_constant,
    tune_policy,
)


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


def test_two_rows_of_gates_are_refused(loss):
    policy = PolicyConfig(action_space="prompt_and_answer", n_layers=2, observation_dim=32)
    with pytest.raises(ValueError, match="one row of gates, not two in turn"):
        tune_constant(loss, policy, budget=16, batch=8, lr=0.1, seed=0)
    with pytest.raises(ValueError, match="one row of gates, not two in turn"):
        tune_policy(loss, policy, torch.randn(8, 32), budget=16, batch=8, lr=0.1, seed=0)
