"""Gates "policy": each prompt gets what the exported policy chooses for it."""

from __future__ import annotations

import pytest
import torch

from mhc_model import ConfigError
from mhc_model.checkpoint import checkpoint_hash
from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy

BODY = {"max_tokens": 4, "temperature": 0, "gates": "policy"}


@pytest.fixture
def make_policy(checkpoint, make_engine):
    """A policy with random weights, so that prompts get visibly different gates."""

    def make(**fields) -> GatePolicy:
        model = make_engine().model
        values = {
            "action_space": "per_sublayer",
            "n_layers": model.config.n_layers,
            "observation_dim": model.config.d_model,
            "checkpoint_hash": checkpoint_hash(checkpoint),
        }
        policy = GatePolicy(PolicyConfig(**{**values, **fields}))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return policy.eval()

    return make


def test_each_prompt_gets_the_gates_of_the_policy(post, make_service, make_policy, make_engine):
    policy = make_policy()
    service = make_service(policy=policy)
    prompts = [[1, 2, 3], [40, 50]]
    answer = post(service, prompt=prompts, **BODY).json()
    expected = policy.gates_for_prompts(make_engine().model, prompts).tolist()
    for choice, row in zip(answer["choices"], expected, strict=True):
        assert choice["gates"] == pytest.approx(row, abs=1e-5)
    assert expected[0] != expected[1]
    assert answer["gates"] is None  # they differ
    assert answer["gates_source"] == "policy"
    one = post(service, prompt=prompts[0], **BODY).json()
    assert one["gates"] == pytest.approx(expected[0], abs=1e-5)
    assert one["choices"][0]["text"] == answer["choices"][0]["text"]
    assert service.models().data[0].policy is True


def test_tokens_are_checked_before_the_policy_sees_them(post, make_service, make_policy):
    service = make_service(policy=make_policy())
    for token in (300, -1, 10**30):
        response = post(service, prompt=[1, token], **BODY)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("trained_on", ["0" * 64, None])
def test_a_policy_of_another_checkpoint_is_refused(make_service, make_policy, trained_on):
    with pytest.raises(ConfigError, match=trained_on or "unknown"):
        make_service(policy=make_policy(checkpoint_hash=trained_on))
