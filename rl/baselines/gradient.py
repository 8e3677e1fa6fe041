"""Gates tuned by gradient with everything else frozen: cross-entropy of the right answers.

The right answers are read, nothing is generated, so what is counted are sequences that went
forward and backward, as many as the others have rollouts.

Axes: b problem, t token, a action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.problems import Problem
from evals.tasks import prompt_tokens
from mhc_model.config import PolicyConfig
from mhc_model.decoder import Decoder
from mhc_model.policy import GatePolicy, expand_actions
from mhc_model.tokenizer import Tokenizer
from rl.env import ProblemStream
from rl.setup import answer_tokens

IGNORED = -100  # cross_entropy's own mark of positions that do not count


class AnswerLoss:
    """Cross-entropy of problems' right answers as a function of their gates; the model is frozen
    while it is used."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, problems: Sequence[Problem]) -> None:
        """Takes the model over: its parameters get no gradient from now on."""
        self.model = model.requires_grad_(False).eval()
        self.model.gradient_checkpointing = True  # it is long answers that memory is short of
        self.prompts = [prompt_tokens(tokenizer, problem) for problem in problems]
        self._answers = [answer_tokens(tokenizer, problem) for problem in problems]

    def __call__(self, indices: Sequence[int], gates: Tensor) -> Tensor:
        """Mean nats per answer token; gates (b, 2L), one row a problem."""
        device = self.model.embedding.weight.device
        rows = [torch.tensor(self.prompts[i] + self._answers[i]) for i in indices]
        rows = [row[: self.model.config.max_seq_len + 1] for row in rows]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        targets = torch.full_like(tokens[:, 1:], IGNORED)
        for row, index in enumerate(indices):
            start, stop = len(self.prompts[index]) - 1, len(rows[row]) - 1
            targets[row, start:stop] = tokens[row, start + 1 : stop + 1]
        # What is after the end is behind everything that counts: attention is causal.
        logits = self.model(tokens[:, :-1].to(device), gates.to(device))
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten().to(device), ignore_index=IGNORED
        )


def tune_constant(
    loss: AnswerLoss, policy: PolicyConfig, budget: int, batch: int, lr: float, seed: int
) -> tuple[Tensor, list[float]]:
    """One vector for all problems, from the learned gates on.

    Returns:
        (a,) float32 actions, and the loss of every step.
    """
    _check_space(policy)
    learned = loss.model.learned_gates().detach().cpu()
    per_action = learned.unflatten(0, (policy.n_actions, -1)).mean(1)
    logits = torch.logit(per_action.clamp(1e-3, 1.0 - 1e-3)).requires_grad_(True)

    def actions(indices: Sequence[int]) -> Tensor:
        return torch.sigmoid(logits).expand(len(indices), -1)

    losses = _descend(loss, [logits], actions, policy, budget, batch, lr, seed)
    return torch.sigmoid(logits).detach(), losses


def tune_policy(
    loss: AnswerLoss,
    config: PolicyConfig,
    observations: Tensor,
    budget: int,
    batch: int,
    lr: float,
    seed: int,
) -> tuple[GatePolicy, list[float]]:
    """The network that PPO has, by gradient: its mean is what sets the gates.

    observations: (problems, c) float32, what it sees of each problem.

    Returns:
        The policy, and the loss of every step.
    """
    _check_space(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = GatePolicy(config)
    losses = _descend(
        loss,
        list(policy.parameters()),
        lambda indices: policy(observations[indices]),
        config,
        budget,
        batch,
        lr,
        seed,
    )
    return policy.eval(), losses


def _check_space(policy: PolicyConfig) -> None:
    if policy.action_space == "prompt_and_answer":
        raise ValueError("a sequence goes forward under one row of gates, not two in turn")


def _descend(
    loss: AnswerLoss,
    parameters: list[Tensor],
    actions: Callable[[Sequence[int]], Tensor],
    policy: PolicyConfig,
    budget: int,
    batch: int,
    lr: float,
    seed: int,
) -> list[float]:
    optimizer = torch.optim.Adam(parameters, lr=lr)
    losses = []
    for indices in _batches(len(loss.prompts), budget, batch, seed):
        value = loss(indices, expand_actions(actions(indices), policy))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def _batches(count: int, budget: int, batch: int, seed: int) -> Iterator[list[int]]:
    stream = ProblemStream(count, seed)
    for start in range(0, budget - batch + 1, batch):
        yield stream.indices(start, batch)
