"""The RLlib module: its distribution, and the policy that is exported from it."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from ray.rllib.core.columns import Columns

from mhc_model.config import PolicyConfig
from rl.ppo import GateBeta, GateModule

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
