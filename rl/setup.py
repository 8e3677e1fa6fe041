"""What a run needs before its first answer: model, problems, observations, and what actions mean.

Everything that can be refused is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from evals.problems import Problem, load_problems
from evals.tasks import fingerprint, gold_answer, prompt, prompt_tokens
from mhc_model.checkpoint import Checkpoint, load_checkpoint
from mhc_model.config import PolicyConfig
from mhc_model.errors import CheckpointError, ConfigError
from mhc_model.gates import resolve_gates
from mhc_model.policy import observe_prompts
from mhc_model.tokenizer import Tokenizer
from rl.config import RLConfig


class Setup(NamedTuple):
    """observations: (problems, c) float32, what the policy sees of each problem."""

    checkpoint: Checkpoint
    problems: list[Problem]
    observations: Tensor
    policy: PolicyConfig


def prepare(config: RLConfig) -> Setup:
    """Loads what the configuration names.

    Raises:
        MHCError: if checkpoint, problems or configuration do not allow it.
    """
    checkpoint = load_checkpoint(config.checkpoint)
    if (gateless := checkpoint.model.config.gateless) is not None:
        raise ConfigError(f"{checkpoint.path} is {gateless}: it has no gates")
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"{checkpoint.path} has no tokenizer; problems are text")
    for gates in config.sweep:
        resolve_gates(gates, checkpoint.model.config)  # an unknown name is refused
    problems = load_problems(config.data, "train", config.problems)
    observations = observe(config, checkpoint, problems)
    return Setup(checkpoint, problems, observations, policy_config(config, checkpoint))


def problems_hash(problems: Sequence[Problem]) -> str:
    """sha256 of what is asked and what is right; a run that goes on must have the same."""
    return fingerprint((p.id, prompt(p), gold_answer(p)) for p in problems)


def answer_tokens(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    """The problem's own answer as it follows the prompt, its end included."""
    return [*tokenizer.encode(f" {problem.answer}"), tokenizer.eos_id]


def observe(config: RLConfig, checkpoint: Checkpoint, problems: list[Problem]) -> Tensor:
    """(problems, c) float32: what the policy sees of each problem.

    Raises:
        ConfigError: if a prompt leaves no room for its answer; hours later would be too late.
    """
    prompts = [prompt_tokens(checkpoint.tokenizer, problem) for problem in problems]
    position = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    longest, context = len(prompts[position]), checkpoint.model.config.max_seq_len
    if config.wants_likelihood:
        _check_answers(checkpoint.tokenizer, problems, prompts, context)
    if longest + config.max_tokens > context:
        raise ConfigError(
            f"the prompt of {problems[position].id} has {longest} tokens, which with max_tokens "
            f"{config.max_tokens} exceeds the model's context of {context}; for these problems "
            f"max_tokens can be at most {context - longest}"
        )
    return observe_prompts(checkpoint.model, prompts, policy_config(config, checkpoint))


def _check_answers(
    tokenizer: Tokenizer, problems: list[Problem], prompts: list[list[int]], context: int
) -> None:
    for problem, tokens in zip(problems, prompts, strict=True):
        total = len(tokens) + len(answer_tokens(tokenizer, problem))
        if total > context:
            raise ConfigError(
                f"prompt and answer of {problem.id} have {total} tokens, which exceeds the model's "
                f"context of {context}: its likelihood cannot be scored; leave the problem out, or "
                f"take reward: answer without log_both"
            )


def policy_config(config: RLConfig, checkpoint: Checkpoint) -> PolicyConfig:
    """What the policy observes and sets for this checkpoint.

    Raises:
        ConfigError: if the observed layer is not one of the model's.
    """
    model = checkpoint.model.config
    if config.observation_layer is not None and config.observation_layer > model.n_layers:
        raise ConfigError(
            f"observation_layer is {config.observation_layer}; this model has layers 1 to "
            f"{model.n_layers}"
        )
    return PolicyConfig(
        action_space=config.action_space,
        n_layers=model.n_layers,
        observation=config.observation,
        observation_layer=config.observation_layer,
        observation_dim=model.d_model,
        hidden=config.ppo.hidden,
        checkpoint_hash=checkpoint.content_hash,
    )
