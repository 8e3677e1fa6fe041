"""PPO on environments whose right gates are known, or that fail; its state, also one of before."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from ray.rllib.core.rl_module.rl_module import RLModule

from mhc_model import EngineError
from mhc_model.config import PolicyConfig
from rl.config import PoolSettings, PPOSettings, RLConfig
from rl.ppo import (
    GateModule,
    GatePPO,
    OneStepLearner,
    build_algorithm,
    current_policy,
    earlier_modules,
    restore_state,
    sample_timeout_s,
    save_state,
    train_iteration,
)
from rl.ppo.algorithm import EARLIER_MODULES

POLICY = PolicyConfig(action_space="per_layer", n_layers=2, observation_dim=4, hidden=(32,))


class TargetEnv(VectorEnv):
    """Reward 1 with probability 1 - |gate - target| averaged over gates; the target of the first
    gate is read from the observation, that of the second is 0.9."""

    def __init__(self, num_envs: int) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs = num_envs
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._random = np.random.default_rng(0)
        self._terminal = False

    def reset(self, *, seed=None, options=None):
        self._terminal = False
        return self._show(), {}

    def step(self, actions):
        never = np.zeros(self.num_envs, dtype=bool)
        if self._terminal:
            self._terminal = False
            return self._show(), np.zeros(self.num_envs), never, never.copy(), {}
        self._terminal = True
        distance = np.abs(actions - targets(self._observation)).mean(-1)
        rewards = (self._random.random(self.num_envs) < 1.0 - distance).astype(float)
        return self._observation, rewards, ~never, never, {}

    def _show(self):
        self._observation = self._random.normal(size=(self.num_envs, 4)).astype(np.float32)
        return self._observation


def targets(observation: np.ndarray) -> np.ndarray:
    first = np.where(observation[:, 0] > 0, 0.9, 0.1)
    return np.stack([first, np.full_like(first, 0.9)], axis=-1)


@pytest.mark.ray
@pytest.mark.slow
def test_ppo_finds_gates_that_depend_on_the_observation(ray_cluster):
    config = RLConfig(
        name="t",
        checkpoint="none",
        envs=128,
        rollouts=512,
        ppo=PPOSettings(lr=5e-3, minibatch=128, hidden=(32,), entropy=0.0, kl_weight=0.0),
    )
    algorithm = build_algorithm(config, POLICY, TargetEnv(config.envs))
    try:
        for iteration in range(1, 21):
            figures = train_iteration(algorithm, seed=0, iteration=iteration)
            assert abs(figures["policy_loss"]) < 0.4, "advantages have mean 0"
        policy = current_policy(algorithm)
        observation = torch.randn(256, 4, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            gates = policy(observation).numpy()
    finally:
        algorithm.stop()
    error = np.abs(gates - targets(observation.numpy())).mean(0)
    assert error[1] < 0.1, "a constant gate is found (it starts 0.4 away)"
    assert error[0] < 0.22, "so is one that depends on the observation (a constant is 0.4 away)"


class BrokenEnv(TargetEnv):
    """Fails as the pool does."""

    def step(self, actions):
        raise EngineError("no replica is left")


@pytest.mark.ray
def test_what_the_environment_raises_reaches_the_caller(ray_cluster):
    config = RLConfig(name="t", checkpoint="none", envs=4, rollouts=4, ppo={"minibatch": 4})
    results = Path("~/ray_results").expanduser()
    before = set(results.glob("*"))
    algorithm = build_algorithm(config, POLICY, BrokenEnv(4))
    try:
        with pytest.raises(EngineError, match="no replica is left"):
            train_iteration(algorithm, seed=0, iteration=1)
    finally:
        algorithm.stop()
    assert set(results.glob("*")) == before, "nothing is left in the home directory"


def test_rllib_waits_longer_than_a_call_that_fails_every_time():
    pool = PoolSettings(max_attempts=3, deadline_s=20.0, start_deadline_s=5.0)
    assert sample_timeout_s(pool) >= 3 * (20.0 + 5.0)


@pytest.mark.ray
def test_a_state_that_names_modules_of_before_is_restored(ray_cluster, tmp_path, monkeypatch):
    config = RLConfig(name="t", checkpoint="none", envs=4, rollouts=4, ppo={"minibatch": 4})
    algorithm = build_algorithm(config, POLICY, TargetEnv(4))
    try:
        train_iteration(algorithm, seed=0, iteration=1)
        expected = current_policy(algorithm).state_dict()
        expected = {name: value.clone() for name, value in expected.items()}
        with earlier_modules(), monkeypatch.context() as before:
            # As it was: rl/module.py, rl/learner.py, and rl/ppo.py where the room is now.
            for kind in (GateModule, OneStepLearner):
                before.setattr(kind, "__module__", kind.__module__.replace("rl.ppo.", "rl."))
            before.setattr(GatePPO, "__module__", "rl.ppo")
            save_state(algorithm, tmp_path / "state", lambda staging: None)
        pickles = list((tmp_path / "state").rglob("*.pkl"))
        assert any(b"rl.module" in pickle.read_bytes() for pickle in pickles)
        assert any(b"rl.learner" in pickle.read_bytes() for pickle in pickles)
        assert not any(b"rl.ppo." in pickle.read_bytes() for pickle in pickles)
        train_iteration(algorithm, seed=0, iteration=2)
        restore_state(algorithm, tmp_path / "state")
        for name, value in current_policy(algorithm).state_dict().items():
            assert value.equal(expected[name]), name
    finally:
        algorithm.stop()
    trained = tmp_path / "state" / "algorithm" / "learner_group" / "learner" / "rl_module"
    trained /= "default_policy"
    with pytest.raises(ModuleNotFoundError, match=r"rl\.module"):
        pickle.loads((trained / "class_and_ctor_args.pkl").read_bytes())
    with earlier_modules():
        module = RLModule.from_checkpoint(trained)
    assert type(module) is GateModule
    assert not set(EARLIER_MODULES) & set(sys.modules), "only while something is restored"
