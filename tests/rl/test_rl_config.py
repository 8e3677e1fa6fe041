"""The configuration of a run: what is refused, and the shipped files."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mhc_model import ConfigError
from mhc_model.settings import load_settings
from rl.__main__ import main
from rl.config import RLConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 2}, "samples is 2 at temperature 0"),
        ({"difficulty": (0.9, 0.1)}, "difficulty 0.9 to 0.1 is no window"),
        ({"observation": "mean_hidden_state"}, "needs a layer"),
        ({"token_cost": -0.1}, "greater than or equal to 0"),
        (
            {"reward": "likelihood", "action_space": "prompt_and_answer"},
            "reward: likelihood scores .* under the prompt's gates alone",
        ),
        (
            {"log_both": True, "action_space": "prompt_and_answer"},
            "log_both scores .* under the prompt's gates alone",
        ),
        (
            {"reward": "likelihood", "difficulty": (0.1, 0.9)},
            "difficulty is a window for the share of right answers",
        ),
        ({"sweep": (0.5, 1.5)}, "sweep gate 1.5 is outside"),
        ({"pool": {"replicas": 3, "max_replicas": 2}}, "max_replicas 2 is below replicas 3"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        RLConfig(name="t", checkpoint="none", **fields)


def test_what_a_rollout_measures_follows_from_the_reward():
    def measured(**fields) -> tuple[bool, bool]:
        config = RLConfig(name="t", checkpoint="none", **fields)
        return config.wants_answers, config.wants_likelihood

    assert measured() == (True, False)
    assert measured(token_cost=0.01) == (True, False)
    assert measured(reward="likelihood") == (False, True)
    assert measured(reward="likelihood", token_cost=0.01) == (True, True)
    assert measured(reward="likelihood", log_both=True) == (True, True)
    assert measured(log_both=True) == (True, True)


def test_a_run_of_before_names_its_extraction_a_reward():
    config = RLConfig(name="t", checkpoint="none", reward="flexible")
    assert (config.reward, config.extraction) == ("answer", "flexible")
    assert config == RLConfig(name="t", checkpoint="none", extraction="flexible")


CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RL_CONFIGS = sorted([*CONFIGS.glob("*_rl.yaml"), *CONFIGS.glob("rl_*.yaml")])


@pytest.mark.parametrize("path", RL_CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load(path):
    config = load_settings(RLConfig, path)
    if path.stem in ("rl_published", "rl_plan"):  # its earlier name
        assert (config.rollouts, config.ppo.minibatch, config.ppo.epochs) == (1024, 64, 10)
        assert (config.ppo.lr, config.ppo.gamma, config.ppo.entropy) == (3e-4, 0.99, 0.1)


def test_impossible_sizes_are_refused(arguments):
    with pytest.raises((ConfigError, SystemExit)):
        main([*arguments, "--rollouts", "17"])
