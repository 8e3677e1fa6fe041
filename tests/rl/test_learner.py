"""Advantages of one-step episodes: centred, scaled, and computed on real steps only."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing

from mhc_model.policy import PolicyConfig
from rl.learner import LEAST_SPREAD, OneStepAdvantages, standardise
from rl.module import GateModule


@settings(suppress_health_check=[HealthCheck.too_slow])  # drawing is slow on a busy machine
@given(st.lists(st.floats(-1.0, 1.0, width=32), min_size=2, max_size=64))
def test_standardised_advantages(values):
    advantages = torch.tensor(values)
    standard = standardise(advantages)
    assert float(standard.mean()) == pytest.approx(0.0, abs=1e-3)
    spread = float(advantages.std(correction=0))
    expected = spread / max(spread, LEAST_SPREAD)
    assert float(standard.std(correction=0)) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_noise_of_the_value_net_is_not_blown_up():
    """All rewards equal: there is nothing to learn, and the policy shall stay where it is."""
    noise = 1e-3 * torch.randn(256, generator=torch.Generator().manual_seed(0))
    assert standardise(noise).abs().max() < 0.1
    one_right = torch.zeros(256).index_fill(0, torch.tensor(3), 1.0)
    assert standardise(one_right).std(correction=0) == pytest.approx(1.0, rel=1e-4)


def test_advantage_is_the_reward_beyond_the_value():
    torch.manual_seed(0)
    policy = PolicyConfig(action_space="global", n_layers=2, observation_dim=4, hidden=(8,))
    module = GateModule(
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32),
        action_space=gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32),
        model_config={"policy": policy.model_dump()},
    )
    observations = torch.randn(6, 4)
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    columns = {Columns.OBS: observations, Columns.REWARDS: rewards}
    batch = OneStepAdvantages()(
        rl_module={DEFAULT_MODULE_ID: module}, batch={DEFAULT_MODULE_ID: columns}
    )[DEFAULT_MODULE_ID]
    values = module.compute_values({Columns.OBS: observations}).detach()
    expected = standardise(rewards - values)
    torch.testing.assert_close(batch[Postprocessing.ADVANTAGES], expected)
    torch.testing.assert_close(batch[Postprocessing.VALUE_TARGETS], rewards)
    assert not batch[Postprocessing.ADVANTAGES].requires_grad
