"""The environments: a problem is shown, the action sets its gates, the reward says what came of it.

Episodes have one step (a contextual bandit). `GateVectorEnv` steps all its episodes together, one
batched call of the replica pool; `GSM8KGateEnv` is one episode at a time, for other libraries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from evals.problems import Problem
from mhc_model.config import PolicyConfig
from mhc_model.engine import Engine
from mhc_model.policy import expand_actions
from mhc_model.settings import validate_settings
from rl.config import RLConfig
from rl.pool import LocalPool
from rl.rollouts import Asker, Rollout, RolloutLog
from rl.setup import prepare

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


def spaces_of(
    policy: PolicyConfig, observations: Tensor
) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Observations (c,) float32 within those of the problems, actions (A,) float32 in [0, 1]."""
    bound = float(observations.abs().max())
    observation = gymnasium.spaces.Box(-bound, bound, (policy.observation_dim,), np.float32)
    return observation, gymnasium.spaces.Box(0.0, 1.0, (policy.n_actions,), np.float32)


class GateVectorEnv(VectorEnv):
    """N one-step episodes at a time.

    Observation: (c,) float32, what `mhc_model.policy.observe_prompts` gives for the problem's
    prompt. Action: (A,) float32 in [0, 1]; A = 1, L or 2L, or 2 for prompt and answer. Reward: that
    of `rl.rollouts.reward_of`; 1.0 or 0.0 where each problem is answered once and tokens are free.

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
        spaces = spaces_of(policy, observations)
        self.single_observation_space, self.single_action_space = spaces
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.position = position
        self.iteration = 0  # for which rollouts are made, and the updates that the policy has had
        self.policy_version = 0
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
            policy_version=self.policy_version,
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


class GSM8KGateEnv(gymnasium.Env):
    """One episode at a time: gymnasium's own interface, for libraries that want it.

    Observation, action and reward are those of `GateVectorEnv`. `reset(seed=s)` begins the sequence
    of problems that s gives; without a seed it shows the next one. A step's info is the rollout.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  gymnasium's own way

    def __init__(
        self,
        problems: Sequence[Problem],
        observations: Tensor,
        policy: PolicyConfig,
        asker: Asker,
        seed: int = 0,
    ) -> None:
        """As `GateVectorEnv`; `GSM8KGateEnv.from_checkpoint` is shorter."""
        self.observation_space, self.action_space = spaces_of(policy, observations)
        self._problems = problems
        self._observations = observations.cpu().numpy().astype(np.float32)
        self._policy = policy
        self._asker = asker
        self._stream = ProblemStream(len(problems), seed)
        self._position = 0
        self._shown: int | None = None

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, **fields: Any) -> GSM8KGateEnv:
        """The environment over an engine in this process: no Ray cluster.

        Args:
            checkpoint: checkpoint or run directory of an mHC model.
            fields: of `rl.config.RLConfig`, such as data, problems, action_space or seed.

        Raises:
            MHCError: as `python -m rl` would.
        """
        values = {"name": "environment", **fields, "checkpoint": str(checkpoint)}
        config = validate_settings(RLConfig, values, "GSM8KGateEnv.from_checkpoint")
        loaded, problems, observations, policy = prepare(config)
        engine = Engine(loaded.model, loaded.tokenizer, checkpoint_hash=loaded.content_hash)
        asker = Asker(LocalPool(engine), loaded.tokenizer, config)
        return cls(problems, observations, policy, asker, config.seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, Infos]:
        super().reset(seed=seed)
        if seed is not None:
            self._stream = ProblemStream(len(self._problems), seed)
            self._position = 0
        (self._shown,) = self._stream.indices(self._position, 1)
        return self._observations[self._shown], {"problem": self._problems[self._shown].id}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Infos]:
        if self._shown is None:
            raise gymnasium.error.ResetNeeded("the episode is over; call reset() first")
        index, self._shown = self._shown, None
        gates = torch.as_tensor(action, dtype=torch.float32).reshape(1, -1)
        (rollout,) = self._asker.ask(
            [self._problems[index]],
            expand_actions(gates, self._policy),
            first_index=self._position,
        )
        self._position += 1
        return self._observations[index], rollout.reward, True, False, asdict(rollout)
