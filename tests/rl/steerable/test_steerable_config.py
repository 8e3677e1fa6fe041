"""Configuration of the proof: what is refused, and the shipped one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhc_model import ConfigError
from mhc_model.settings import load_settings, validate_settings
from rl.steerable import (
    SteerableConfig,
    expressible,
)

SHIPPED = Path("configs/steerable.yaml")


def test_which_actions_can_express_what():
    keys = (0, 1, 2)  # attention and mlp of layer 0, attention of layer 1
    cases = {
        (1, 1, 1): {"global", "per_layer", "per_sublayer", "prompt_and_answer"},
        (1, 1, 0): {"per_layer", "per_sublayer"},
        (1, 0, 1): {"per_sublayer"},
    }
    for bits, able in cases.items():
        for space in ("global", "per_layer", "per_sublayer", "prompt_and_answer"):
            wanted = {"red": bits, "blue": (0, 0, 0)}
            assert expressible(space, wanted, keys) == (space in able), (bits, space)


def test_what_no_action_can_express_is_refused():
    values = load_settings(SteerableConfig, SHIPPED).model_dump(mode="json")
    values["variants"]["by_sublayer"]["spaces"] = ["per_layer"]
    with pytest.raises(ConfigError, match=r"by_sublayer\.spaces has per_layer"):
        validate_settings(SteerableConfig, values, "test")
    values["variants"]["by_sublayer"] = {"red": [1], "blue": [0], "spaces": ["global"]}
    with pytest.raises(ConfigError, match="must be 3 bits"):
        validate_settings(SteerableConfig, values, "test")


CONFIGS = Path(__file__).parents[3] / "configs"


def test_the_shipped_proof_compares_three_seeds_on_500_problems_and_more():
    config = load_settings(SteerableConfig, CONFIGS / "steerable.yaml")
    assert len(config.ablation.seeds) >= 3
    assert config.test_problems >= 500
    assert any(variant.is_contextual for variant in config.variants.values())
