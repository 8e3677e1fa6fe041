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

from mhc_model.config import PolicyConfig
from rl.ppo import GateBeta, GateModule, OneStepAdvantages, standardise
from rl.ppo.learner import LEAST_SPREAD, MOST_WEIGHT


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


def make_module(seed: int) -> GateModule:
    torch.manual_seed(seed)
    policy = PolicyConfig(action_space="global", n_layers=2, observation_dim=4, hidden=(8,))
    return GateModule(
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32),
        action_space=gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32),
        model_config={"policy": policy.model_dump()},
    )


def rollouts_of(acting: GateModule, rewards: torch.Tensor) -> dict:
    """Columns of a batch whose gates `acting` drew."""
    observations = torch.randn(len(rewards), 4)
    with torch.no_grad():
        inputs = acting.forward_exploration({Columns.OBS: observations})[Columns.ACTION_DIST_INPUTS]
    distribution = GateBeta.from_logits(inputs)
    actions = distribution.sample()
    return {
        Columns.OBS: observations,
        Columns.REWARDS: rewards,
        Columns.ACTIONS: actions,
        Columns.ACTION_LOGP: distribution.logp(actions),
        Columns.ACTION_DIST_INPUTS: inputs,
    }


def add_advantages(module: GateModule, columns: dict) -> dict:
    batch = {DEFAULT_MODULE_ID: dict(columns)}
    return OneStepAdvantages()(rl_module={DEFAULT_MODULE_ID: module}, batch=batch)[
        DEFAULT_MODULE_ID
    ]


REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])


def test_advantage_is_the_reward_beyond_the_value():
    module = make_module(0)
    columns = rollouts_of(module, REWARDS)
    added = add_advantages(module, columns)
    values = module.compute_values(columns).detach()
    torch.testing.assert_close(added[Postprocessing.ADVANTAGES], standardise(REWARDS - values))
    torch.testing.assert_close(added[Postprocessing.VALUE_TARGETS], REWARDS)
    assert not added[Postprocessing.ADVANTAGES].requires_grad
    for key in (Columns.ACTION_LOGP, Columns.ACTION_DIST_INPUTS):
        torch.testing.assert_close(added[key], columns[key])


def test_rollouts_of_an_older_policy_are_weighted_and_clipped_against_the_present_one():
    older, module = make_module(0), make_module(1)
    torch.nn.init.normal_(module.policy.head.bias)
    columns = rollouts_of(older, REWARDS)
    added = add_advantages(module, columns)
    with torch.no_grad():
        inputs = module.forward_train(columns)[Columns.ACTION_DIST_INPUTS]
        logp = GateBeta.from_logits(inputs).logp(columns[Columns.ACTIONS])
        advantages = standardise(REWARDS - module.compute_values(columns))
    ratio = (logp - columns[Columns.ACTION_LOGP]).exp()
    assert ratio.max() > 1.1
    torch.testing.assert_close(added[Columns.ACTION_LOGP], logp)
    torch.testing.assert_close(added[Columns.ACTION_DIST_INPUTS], inputs)
    weighted = ratio.clamp(max=MOST_WEIGHT) * advantages
    torch.testing.assert_close(added[Postprocessing.ADVANTAGES], weighted)
