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
        ({"pool": {"replicas": 3, "max_replicas": 2}}, "max_replicas 2 is below replicas 3"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        RLConfig(name="t", checkpoint="none", **fields)


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
