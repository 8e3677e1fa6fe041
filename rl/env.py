"""The environment: a problem is shown, the action sets its gates, the reward is 1 if it is solved.

Episodes have one step (a contextual bandit). All sub-environments step together, so a step is one
batched call of the replica pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from evals.problem import Problem
from mhc_model.policy import PolicyConfig, expand_actions
from rl.rollouts import Asker, Rollout, RolloutLog

Infos = dict[str, Any]


class ProblemStream:
    """An endless sequence of problems, a pure function of the seed: resuming is a position.

    Every epoch visits all problems once, in an order drawn from (seed, epoch).
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(count)
        )

    def indices(self, start: int, size: int) -> list[int]:
        """Problem indices at the positions start .. start + size of the sequence."""
        places = (divmod(position, self.count) for position in range(start, start + size))
        return [int(self._order(epoch)[place]) for epoch, place in places]


class GateVectorEnv(VectorEnv):
    """N one-step episodes at a time.

    Observation: (c,) float32, the mean token embedding of the problem's prompt. Action: (A,)
    float32 in [0, 1]; A = 1, L or 2L. Reward: 1.0 or 0.0.

    Reset mode is NEXT_STEP, as RLlib expects: the step after a terminal one only shows the next
    problems; its action is ignored and the pool is not called.
    """

    def __init__(
        self,
        num_envs: int,
        problems: Sequence[Problem],
        observations: Tensor,
        policy: PolicyConfig,
        asker: Asker,
        log: RolloutLog,
        seed: int,
        position: int = 0,
    ) -> None:
        """Builds the environment.

        Args:
            num_envs: episodes that step together.
            problems: to draw from.
            observations: (problems, c) float32, one row a problem.
            policy: says what an action means.
            asker: runs the model.
            log: keeps every rollout.
            seed: of the order of the problems.
            position: in the sequence of problems; a resumed run goes on where it was.
        """
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs = num_envs
        width = observations.shape[1]
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(0.0, 1.0, (policy.n_actions,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.position = position
        self.iteration = 0
        self.recent: list[Rollout] = []  # of this iteration; emptied by whoever reads it
        self._problems = problems
        self._observations = observations.cpu().numpy().astype(np.float32)
        self._policy = policy
        self.asker = asker
        self._log = log
        self._stream = ProblemStream(len(problems), seed)
        self._shown: list[int] = []
        self._terminal = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, Infos]:
        """Shows the next problems. The order comes from the constructor's seed, not from here:
        RLlib resets before every batch of episodes, and each must go on in the sequence."""
        self._terminal = False
        return self._show(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Answers the shown problems under the gates of `actions` (N, A)."""
        never = np.zeros(self.num_envs, dtype=bool)
        if self._terminal:
            self._terminal = False
            return self._show(), np.zeros(self.num_envs), never, never.copy(), {}
        rollouts = self.asker.ask(
            [self._problems[index] for index in self._shown],
            expand_actions(torch.as_tensor(actions, dtype=torch.float32), self._policy),
            first_index=self.position,
            iteration=self.iteration,
        )
        self._log.write(rollouts)
        self.recent += rollouts
        self.position += self.num_envs
        self._terminal = True
        rewards = np.array([rollout.reward for rollout in rollouts])
        return self._observations[self._shown], rewards, ~never, never, {}

    def _show(self) -> np.ndarray:
        self._shown = self._stream.indices(self.position, self.num_envs)
        return self._observations[self._shown]
