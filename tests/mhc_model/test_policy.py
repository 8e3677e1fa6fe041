"""The exported gate policy: sizes, files, and what it observes."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from mhc_model import CheckpointError, ConfigError, GateError
from mhc_model.config import PolicyConfig
from mhc_model.decoder import watching
from mhc_model.policy import GatePolicy, hidden_observation, prompt_observation


def make_policy(action_space: str = "per_sublayer", seed: int = 0) -> GatePolicy:
    torch.manual_seed(seed)
    config = PolicyConfig(
        action_space=action_space, n_layers=3, observation_dim=32, checkpoint_hash="abc"
    )
    policy = GatePolicy(config)
    torch.nn.init.normal_(policy.head.weight)  # so that prompts differ clearly
    return policy.eval()


@pytest.mark.parametrize(
    ("action_space", "actions"), [("global", 1), ("per_layer", 3), ("per_sublayer", 6)]
)
def test_actions_expand_to_gates(action_space, actions):
    policy = make_policy(action_space)
    observation = torch.randn(5, 32)
    with torch.no_grad():
        chosen, gates = policy(observation), policy.gates(observation)
    assert chosen.shape == (5, actions)
    assert gates.shape == (5, 6)
    assert ((gates > 0.0) & (gates < 1.0)).all()
    torch.testing.assert_close(gates, chosen.repeat_interleave(6 // actions, dim=1))
    assert (chosen.std(dim=0) > 1e-3).all(), "the gates depend on the prompt"


def test_mean_of_the_distribution():
    policy = make_policy()
    observation = torch.randn(4, 32)
    with torch.no_grad():
        alpha, beta = policy.concentrations(observation)
        mean = torch.distributions.Beta(alpha, beta).mean
        torch.testing.assert_close(policy(observation), mean)
    assert (alpha > 1.0).all()
    assert (beta > 1.0).all()


def test_observation_is_the_mean_embedding(tiny_model):
    model = tiny_model()
    prompts = [[3, 4, 5, 5], [7], [1, 60]]
    expected = torch.stack([model.embedding.weight[prompt].mean(0) for prompt in prompts])
    torch.testing.assert_close(prompt_observation(model, prompts), expected)
    with pytest.raises(ValueError, match="at least one token"):
        prompt_observation(model, [[1], []])


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_hidden_observation_is_the_mean_of_streams_and_tokens(tiny_model, layer):
    model = tiny_model()
    prompt = [3, 4, 5, 5, 9]
    seen = {}
    with watching(model, lambda k, x, coefficients, gate: seen.update({k: x})), torch.no_grad():
        hidden = model.hidden(torch.tensor([prompt]))
    if layer < 3:  # what the next layer's attention finds: streams (1, t, n, c)
        expected = seen[2 * layer][0].mean(dim=(0, 1))
        torch.testing.assert_close(hidden_observation(model, [prompt], layer)[0], expected)
    else:
        with torch.no_grad():
            normed = model.final_norm(model.hidden_after(torch.tensor([prompt]), layer))
        torch.testing.assert_close(normed, hidden)


def test_hidden_observation_does_not_depend_on_company_or_set_gates(tiny_model):
    model = tiny_model()
    prompts = [[3, 4, 5, 5], [7], [1, 60, 2]]
    together = hidden_observation(model, prompts, 2)
    model.set_gates(0.3)  # a notebook's
    with watching(model, lambda *_: pytest.fail("whoever watches waits for whole passes")):
        alone = torch.cat([hidden_observation(model, [prompt], 2) for prompt in prompts])
    assert torch.equal(together, alone)
    with pytest.raises(ValueError, match="at least one token"):
        hidden_observation(model, [[1], []], 2)
    with pytest.raises(GateError, match="plain"):
        hidden_observation(tiny_model(plain=True), prompts, 2)


def test_a_layer_is_named_where_one_is_read_and_only_there():
    sizes = {"action_space": "global", "n_layers": 3, "observation_dim": 32}
    assert PolicyConfig(**sizes, observation="mean_hidden_state", observation_layer=3)
    for fields, message in (
        ({"observation": "mean_hidden_state"}, "needs a layer"),
        ({"observation_layer": 2}, "the others take none"),
        ({"observation": "mean_hidden_state", "observation_layer": 4}, "4 exceeds n_layers 3"),
    ):
        with pytest.raises(ValidationError, match=message):
            PolicyConfig(**sizes, **fields)


def test_save_and_load(tmp_path, tiny_model):
    policy = make_policy()
    policy.save(tmp_path / "policy")
    make_policy(seed=1).save(tmp_path / "policy")
    policy.save(tmp_path / "policy")  # replaces
    loaded = GatePolicy.load(tmp_path / "policy")
    assert loaded.config == policy.config
    prompts = [[1, 2, 3], [9]]
    model = tiny_model()
    torch.testing.assert_close(
        loaded.gates_for_prompts(model, prompts), policy.gates_for_prompts(model, prompts)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["policy"], "nothing is left behind"


def test_damaged_policies_are_refused(tmp_path):
    directory = tmp_path / "policy"
    with pytest.raises(CheckpointError, match="no policy directory"):
        GatePolicy.load(directory)
    make_policy().save(directory)
    weights = directory / "policy.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="no policy directory"):
        GatePolicy.load(directory)
    weights.write_bytes(content)
    values = json.loads((directory / "policy.json").read_text())
    (directory / "policy.json").write_text(json.dumps({**values, "n_layers": 4}))
    with pytest.raises(CheckpointError, match="does not fit"):
        GatePolicy.load(directory)
    (directory / "policy.json").write_text(json.dumps({**values, "n_layer": 4}))
    with pytest.raises(ConfigError, match="did you mean 'n_layers'"):
        GatePolicy.load(directory)


def test_impossible_widths_are_refused():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        PolicyConfig(action_space="global", n_layers=3, observation_dim=32, hidden=(16, 0))


def test_another_directory_is_not_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(CheckpointError, match="is no policy"):
        make_policy().save(tmp_path / "notes")
