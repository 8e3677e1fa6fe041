"""Configuration of ablations: what is refused, and that the shipped ones are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhc_model import ConfigError
from mhc_model.settings import load_settings, validate_settings
from rl.ablate import METHODS, AblateConfig, parse_arm

CONFIGS = Path(__file__).parents[3] / "configs"
VALUES = {"name": "t", "checkpoint": "none"}
FEW = {"iterations": 1, "rollouts": 16, "envs": 16, "ppo": {"minibatch": 16}}
FEW |= {"against": ["learned"]}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ablate_*.yaml")), ids=lambda path: path.stem)
def test_shipped_ablations_are_valid(path):
    config = load_settings(AblateConfig, path)
    assert config.budget == config.iterations * config.rollouts


def test_all_methods_and_action_spaces_are_compared_unless_told_otherwise():
    arms = [parse_arm(arm, "per_layer") for arm in AblateConfig(**VALUES).arms]
    assert {method for method, _ in arms} == set(METHODS)
    spaces = {space for method, space in arms if method == "ppo"}
    assert spaces == {"global", "per_layer", "per_sublayer"}, "one row of gates for a request"
    assert ("cem", "per_layer") in arms, "an arm without a space has that of the configuration"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": ["pppo"]}, "'pppo' is no METHOD.*best_constant"),
        ({"arms": ["ppo:layer"]}, "'ppo:layer'.*per_layer"),
        ({"arms": ["ppo", "ppo"]}, "arms has an entry twice"),
        ({"seeds": [1, 1]}, "seeds has an entry twice"),
        ({"grid": [0.0, 1.5]}, r"1\.5 is outside of \[0, 1\]"),
        ({"rollouts": 100, "envs": 64}, "rollouts 100 is not a multiple"),
        ({"against": ["best"]}, "against has 'best'.*there are: learned, g=0, g=0.25.*gradient"),
        ({"arms": ["ppo"]}, "against has 'best_constant', which is no arm of this ablation"),
        ({"against": ["known"]}, "against has 'known'"),
        (FEW | {"arms": ["cem"]}, r"'cem' has a budget of 16.* 32 \(search.candidates\)"),
        (FEW | {"arms": ["reinforce"]}, r"budget of 16.* 64 \(reinforce.batch\)"),
        (FEW | {"arms": ["gradient:global"], "gradient": {"budget": 15}}, "budget of 15.* of 16 "),
        ({"difficulty": [0.1, 0.9]}, "difficulty is a window for PPO alone"),
        ({"arms": ["behaviour:"]}, "'behaviour:' is no METHOD.*behaviour:NAME"),
        ({"arms": ["gradient:prompt_and_answer"]}, "by gradient.*another action space"),
        (
            {"arms": ["ppo:prompt_and_answer"], "reward": "likelihood", "against": ["learned"]},
            "scored under those of the prompt; give the arm another action space",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        validate_settings(AblateConfig, VALUES | fields, "test")


def test_arms_of_one_step_and_those_that_are_there_are_allowed():
    against = ["learned", "g=0.5", "ppo", "known", "behaviour:direct"]
    arms = {"arms": ["ppo", "gradient", "behaviour:direct"], "against": against}
    config = validate_settings(AblateConfig, VALUES | FEW | arms | {"known": "known.json"}, "test")
    assert config.budget == config.gradient.batch == 16
