"""The RLlib module: its distribution, and that PPO moves it where the reward is."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from ray.rllib.core.columns import Columns

from mhc_model import EngineError
from mhc_model.config import PolicyConfig
from rl.config import PPOSettings, RLConfig
from rl.ppo import GateBeta, GateModule, build_algorithm, current_policy, train_iteration

POLICY = PolicyConfig(action_space="per_layer", n_layers=2, observation_dim=4, hidden=(32,))


def module() -> GateModule:
    torch.manual_seed(0)
    return GateModule(
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32),
        action_space=gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32),
        model_config={"policy": POLICY.model_dump()},
    )


def test_distribution_equals_torchs_beta_summed_over_gates():
    alpha, beta = 1.0 + 4.0 * torch.rand(5, 3), 1.0 + 4.0 * torch.rand(5, 3)
    ours = GateBeta.from_logits(torch.cat([alpha, beta], dim=-1))
    other = GateBeta.from_logits(torch.cat([beta, alpha], dim=-1))
    theirs, theirs_other = (
        torch.distributions.Beta(alpha, beta),
        torch.distributions.Beta(beta, alpha),
    )
    gates = torch.rand(5, 3)
    torch.testing.assert_close(ours.logp(gates), theirs.log_prob(gates).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    kl = torch.distributions.kl_divergence(theirs, theirs_other).sum(-1)
    torch.testing.assert_close(ours.kl(other), kl)
    torch.testing.assert_close(ours.to_deterministic().sample(), theirs.mean)
    assert torch.isfinite(ours.logp(torch.tensor([[0.0, 1.0, 0.5]]).expand(5, 3))).all()


def test_exported_policy_is_the_modules_deterministic_action(tmp_path):
    trained = module()
    observation = torch.randn(7, 4)
    inputs = trained.forward_inference({Columns.OBS: observation})[Columns.ACTION_DIST_INPUTS]
    deterministic = GateBeta.from_logits(inputs).to_deterministic().sample()
    trained.policy.save(tmp_path / "policy")
    loaded = type(trained.policy).load(tmp_path / "policy")
    torch.testing.assert_close(loaded(observation), deterministic, rtol=0, atol=1e-6)


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
