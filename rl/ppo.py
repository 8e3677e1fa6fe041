"""RLlib PPO (new API stack) over the gate environment.

The environment lives in this process (`num_env_runners=0`): one pool call already steps all
episodes in parallel on the replicas, so another process would only add a hop, and this one sees
every dead replica and every rollout.
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from mhc_model.errors import ConfigError, MHCError
from mhc_model.policy import GatePolicy, PolicyConfig
from rl.config import RLConfig
from rl.env import GateVectorEnv
from rl.learner import OneStepLearner
from rl.module import GateModule

ENVIRONMENT = "mhc-gates"
# RLlib copies configurations, and the environment holds live actors: it is passed by name.
_environments: dict[str, GateVectorEnv] = {}


def _registered(_: Any) -> GateVectorEnv:
    return _environments[ENVIRONMENT]


def build_algorithm(config: RLConfig, policy: PolicyConfig, env: GateVectorEnv) -> PPO:
    """PPO on `env`, which it owns from now on.

    Args:
        config: of the run.
        policy: what the module builds.
        env: with config.envs sub-environments.
    """
    _environments[ENVIRONMENT] = env
    register_env(ENVIRONMENT, _registered)
    ppo = config.ppo
    settings = (
        PPOConfig()
        .environment(
            ENVIRONMENT,
            observation_space=env.single_observation_space,
            action_space=env.single_action_space,
            normalize_actions=False,  # the distribution is bounded like the gates
            clip_actions=True,
        )
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=config.envs,
            gym_env_vectorize_mode="vector_entry_point",
            # A sample is one reset and one step of all episodes, so every iteration begins alike,
            # also the first after resuming.
            batch_mode="complete_episodes",
        )
        .learners(num_learners=0, learner_class=OneStepLearner)
        .training(
            gamma=0.0,  # one step an episode: nothing to discount
            lambda_=1.0,
            lr=ppo.lr,
            train_batch_size_per_learner=config.rollouts,
            minibatch_size=ppo.minibatch,
            num_epochs=ppo.epochs,
            clip_param=ppo.clip,
            entropy_coeff=ppo.entropy,
            vf_loss_coeff=ppo.value_weight,
            use_kl_loss=ppo.kl_weight > 0.0,
            kl_coeff=ppo.kl_weight,
            kl_target=ppo.kl_target,
            grad_clip=ppo.gradient_clip,
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=GateModule, model_config={"policy": policy.model_dump()}
            )
        )
        .debugging(seed=config.seed, log_level="ERROR")
    )
    algorithm = settings.build_algo()
    # For logs that only Tune would write; without this each run leaves one empty directory behind.
    with contextlib.suppress(OSError):  # not empty after all: it stays
        Path(algorithm.logdir).rmdir()
    return algorithm


def train_iteration(algorithm: PPO, seed: int, iteration: int) -> dict[str, float]:
    """One iteration; gives the learner's figures.

    The generators of actions and minibatches are seeded by (seed, iteration), so a run that
    resumes draws what an uninterrupted one would have drawn.

    Raises:
        MHCError: what the environment raised, or if the update was not finite.
    """
    derived = int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0])
    random.seed(derived)
    np.random.seed(derived)  # noqa: NPY002  RLlib shuffles minibatches with the global generator
    torch.manual_seed(derived)
    try:
        learner = algorithm.train()["learners"][DEFAULT_MODULE_ID]
    except RuntimeError as error:  # in which RLlib wraps the environment's
        if isinstance(error.__cause__, MHCError):
            raise error.__cause__ from None
        raise
    names = {
        "entropy": "entropy",
        "kl": "mean_kl_loss",
        "explained_variance": "vf_explained_var",
        "policy_loss": "policy_loss",
        "value_loss": "vf_loss",
    }
    figures = {name: float(learner[key]) for name, key in names.items() if key in learner}
    broken = [name for name, figure in figures.items() if not math.isfinite(figure)]
    if broken:
        raise ConfigError(
            f"iteration {iteration}: {', '.join(broken)} not finite; the last exported policy is "
            f"whole; lower ppo.lr or ppo.epochs and give another name"
        )
    return figures


def current_policy(algorithm: PPO) -> GatePolicy:
    """The network that is being trained."""
    module = algorithm.get_module(DEFAULT_MODULE_ID)
    return module.policy


def save_state(algorithm: PPO, directory: Path, write: Callable[[Path], None]) -> None:
    """Saves the algorithm and what `write` adds, whole or not at all.

    RLlib's own format has pickles in it; a run reads them back from its own directory only.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".state-", dir=directory.parent))
    try:
        algorithm.save_to_path(str(staging / "algorithm"))
        write(staging)
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
