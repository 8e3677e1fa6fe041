"""Where PPO's rollouts come from: sampled when it asks, or beside the learner's work.

Asynchronous: while the learner works on the rollouts of iteration i, those of iteration i + 1 are
made, under the policy that iteration i began with. So the replicas work while the learner does, and
a policy is one update older than its successor expects; an importance weight makes up for it
(rl/ppo/learner.py). The lag is always one, so the run stays reproducible.
"""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from rl.env import GateVectorEnv
from rl.rollouts import Rollout

ACTIONS, MINIBATCHES = 0, 1  # the two uses of random numbers in an iteration


class Sampled(NamedTuple):
    """RLlib's episodes and figures of an iteration, and our rollouts (of a GateVectorEnv)."""

    episodes: list[Any]
    figures: list[Any]
    rollouts: list[Rollout]


class Sampler:
    """Gives an algorithm with a local env runner its batches, in the order of iterations."""

    def __init__(
        self,
        algorithm: Algorithm,
        env: VectorEnv,
        seed: int,
        rollouts: int,
        iterations: int,
        asynchronous: bool,
    ) -> None:
        """Prepares sampling.

        Args:
            algorithm: whose env runner samples and whose learner's weights it takes.
            env: the env runner's.
            seed: of the actions.
            rollouts: of an iteration, at least.
            iterations: after the last of them nothing is sampled beside the learner.
            asynchronous: see the module's docstring.
        """
        self.iteration = 0  # the one that learns; its owner counts
        self.last: Sampled | None = None  # the batch that was taken last
        self._algorithm = algorithm
        self._env = env
        self._seed = seed
        self._rollouts = rollouts
        self._iterations = iterations
        self._asynchronous = asynchronous
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._next: Future[Sampled] | None = None

    def take(self) -> Sampled:
        """The batch of `self.iteration`; asynchronously, the next one is begun.

        Raises:
            RuntimeError: RLlib's, from what the environment raised.
        """
        if self._next is None:
            self._begin(self.iteration)
        self.last = batch = self._next.result()
        self._next = None
        if self._asynchronous:
            self._take_weights()
            if self.iteration < self._iterations:
                self._begin(self.iteration + 1, weights=False)
        return batch

    def acting_weights(self) -> dict[str, Tensor]:
        """Those that the next batch is sampled with, where that is asynchronous."""
        weights = self._algorithm.env_runner.module.state_dict()
        return {name: value.detach().cpu().clone() for name, value in weights.items()}

    def resume(self, iteration: int, weights: dict[str, Tensor]) -> None:
        """Begins the batch of `iteration` as the run that was interrupted had begun it."""
        self._algorithm.env_runner.module.load_state_dict(weights)
        self._begin(iteration, weights=False)

    def close(self) -> None:
        """Waits for what is under way; its outcome nobody wants."""
        self._thread.shutdown(wait=True)

    def _begin(self, iteration: int, weights: bool = True) -> None:
        if weights:
            self._take_weights()
        # Asynchronously, iterations 1 and 2 act alike: no update lies before either.
        version = max(0, iteration - (2 if self._asynchronous else 1))
        torch.manual_seed(derive_seed(self._seed, iteration, ACTIONS))
        self._next = self._thread.submit(self._sample, iteration, version)

    def _take_weights(self) -> None:
        """Copies the learner's weights. RLlib's own way leaves out those that it thinks are there,
        which after resuming with others they are not."""
        (weights,) = self._algorithm.learner_group.foreach_learner(
            lambda learner: learner.module[DEFAULT_MODULE_ID].state_dict()
        )
        self._algorithm.env_runner.module.load_state_dict(weights.get())

    def _sample(self, iteration: int, version: int) -> Sampled:
        runner, env = self._algorithm.env_runner, self._env
        ours = isinstance(env, GateVectorEnv)
        if ours:
            env.iteration, env.policy_version, env.recent = iteration, version, []
        episodes: list[Any] = []
        figures: list[Any] = []
        while len(episodes) < self._rollouts:
            episodes += runner.sample()
            figures.append(runner.get_metrics())
        return Sampled(episodes, figures, env.recent if ours else [])


def derive_seed(seed: int, iteration: int, use: int) -> int:
    """One seed for each use of random numbers, so that resuming draws what would have come."""
    return int(np.random.SeedSequence([seed, iteration, use]).generate_state(1)[0])


def seed_minibatches(seed: int, iteration: int) -> None:
    """Seeds what RLlib shuffles with. Actions have torch's generator for themselves, so sampling
    beside the learner draws the same numbers."""
    derived = derive_seed(seed, iteration, MINIBATCHES)
    random.seed(derived)
    np.random.seed(derived)  # noqa: NPY002  RLlib shuffles with the global generator
