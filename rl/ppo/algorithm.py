"""RLlib PPO (new API stack) over the gate environment.

The environment lives in this process (`num_env_runners=0`): one pool call already steps all
episodes in parallel on the replicas, so another process would only add a hop, and this one sees
every dead replica and every rollout. `rl.ppo.sampler` says when rollouts are
made.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TIMERS,
)
from ray.tune.registry import register_env

from mhc_model.config import PolicyConfig
from mhc_model.errors import ConfigError, MHCError
from mhc_model.policy import GatePolicy
from rl.config import PoolSettings, RLConfig
from rl.ppo.learner import OneStepLearner
from rl.ppo.module import GateModule
from rl.ppo.sampler import Sampler, seed_minibatches

ENVIRONMENT = "mhc-gates"
# Where saved states of earlier versions look for classes -> where these are now. What was the
# module rl.ppo is this room's face, which has the same classes.
EARLIER_MODULES = {
    "rl.learner": "rl.ppo.learner",
    "rl.module": "rl.ppo.module",
    "rl.sampler": "rl.ppo.sampler",
}
# RLlib copies configurations, and the environment holds live actors: it is passed by name.
_environments: dict[str, VectorEnv] = {}


def _registered(_: Any) -> VectorEnv:
    return _environments[ENVIRONMENT]


class GatePPO(PPO):
    """PPO whose rollouts come from a `Sampler`.

    Attributes:
        sampler: set by `build_algorithm`.
        updated_s: seconds of the last update.
    """

    sampler: Sampler
    updated_s: float

    def training_step(self) -> None:
        """Takes the iteration's rollouts, waiting for them, and learns from them."""
        batch = self.sampler.take()
        self.metrics.aggregate(batch.figures, key=ENV_RUNNER_RESULTS)
        sampled = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
        started = time.perf_counter()
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                episodes=batch.episodes,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: sampled},
                num_epochs=self.config.num_epochs,
                minibatch_size=self.config.minibatch_size,
                shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
            )
        self.updated_s = time.perf_counter() - started
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def cleanup(self) -> None:
        if hasattr(self, "sampler"):  # else it was never built to its end
            self.sampler.close()
        super().cleanup()


def build_algorithm(config: RLConfig, policy: PolicyConfig, env: VectorEnv) -> GatePPO:
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
        PPOConfig(algo_class=GatePPO)
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
            sample_timeout_s=sample_timeout_s(config.pool),
        )
        .learners(num_learners=0, learner_class=OneStepLearner)
        .training(
            gamma=ppo.gamma,
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
    algorithm.sampler = Sampler(
        algorithm, env, config.seed, config.rollouts, config.iterations, config.asynchronous
    )
    # For logs that only Tune would write; without this each run leaves one empty directory behind.
    with contextlib.suppress(OSError):  # not empty after all: it stays
        Path(algorithm.logdir).rmdir()
    return algorithm


def sample_timeout_s(pool: PoolSettings) -> float:
    """After which RLlib drops an env runner's rollouts: later than a call that fails every time."""
    return pool.max_attempts * (pool.deadline_s + pool.start_deadline_s)


def train_iteration(algorithm: GatePPO, seed: int, iteration: int) -> dict[str, float]:
    """One iteration; gives the learner's figures, and what was waited for.

    The generators of actions and minibatches are seeded by (seed, iteration), so a run that
    resumes draws what an uninterrupted one would have drawn.

    Raises:
        MHCError: what the environment raised, or if the update was not finite.
    """
    started = time.perf_counter()
    algorithm.sampler.iteration = iteration
    seed_minibatches(seed, iteration)
    try:
        result = algorithm.train()
    except RuntimeError as error:  # in which RLlib wraps the environment's
        if isinstance(error.__cause__, MHCError):
            raise error.__cause__ from None
        raise
    learner = result["learners"][DEFAULT_MODULE_ID]
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
    seconds = time.perf_counter() - started
    return figures | {
        "update_seconds": round(algorithm.updated_s, 4),
        "learner_idle": round(1.0 - algorithm.updated_s / seconds, 4),
        "dropped_runners": result["fault_tolerance"]["num_env_runners_dropped_lifetime"],
    }


def current_policy(algorithm: GatePPO) -> GatePolicy:
    """The network that is being trained: the learner's, not the one that acts."""
    (policy,) = algorithm.learner_group.foreach_learner(
        lambda learner: learner.module[DEFAULT_MODULE_ID].policy
    )
    return policy.get()


def save_state(algorithm: GatePPO, directory: Path, write: Callable[[Path], None]) -> None:
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


def restore_state(algorithm: GatePPO, directory: Path) -> None:
    """Goes on from what `save_state` saved, whatever names the modules had then."""
    with earlier_modules():
        algorithm.restore_from_path(str(directory / "algorithm"))


@contextlib.contextmanager
def earlier_modules() -> Iterator[None]:
    """While it lasts, a pickle that names modules by earlier names finds today's.

    For this process, which is where env runner and learner are, and so where RLlib unpickles.
    """
    for earlier, now in EARLIER_MODULES.items():
        sys.modules[earlier] = importlib.import_module(now)
    try:
        yield
    finally:
        for earlier in EARLIER_MODULES:
            del sys.modules[earlier]
