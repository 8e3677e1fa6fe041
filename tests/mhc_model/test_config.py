"""The model's configuration: defaults, limits, and messages that say what to change."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

import mhc_model
from mhc_model import ConfigError, MHCConfig, ModelConfig
from mhc_model.settings import Settings, validate_settings


def test_defaults_are_nanochat_d12():
    config = ModelConfig()
    assert (config.n_layers, config.d_model, config.n_heads, config.head_dim) == (12, 768, 6, 128)
    assert config.kv_heads == 6
    assert config.n_gates == 0
    assert ModelConfig(mhc=MHCConfig()).n_gates == 24


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 30, "n_heads": 4}, "d_model 30 is not a multiple of n_heads 4"),
        ({"d_model": 12, "n_heads": 4}, "head dim .* 3 is odd"),
        ({"n_heads": 6, "n_kv_heads": 4}, "n_heads 6 is not a multiple of n_kv_heads 4"),
        ({"n_layers": 0}, "n_layers is 0: .* greater than or equal to 1"),
        ({"vocab_size": "many"}, "vocab_size is 'many': .* valid integer"),
        ({"softcap": 0.0}, "softcap is 0.0: .* greater than 0"),
        ({"rope_base": float("inf")}, "rope_base is inf: .* finite"),
        ({"mhc": {"n_streams": 1}}, r"mhc.n_streams is 1: .* greater than or equal to 2"),
        ({"mhc": {"n_streams": 9}}, r"mhc.n_streams is 9: .* less than or equal to 8"),
        ({"mhc": {"tau": 0}}, r"mhc.tau is 0: .* greater than 0"),
        ({"mhc": {"res_diagonal": float("nan")}}, r"mhc.res_diagonal is nan: .* finite"),
        ({"mhc": {"gate_init": 1.0}}, r"mhc.gate_init is 1.0: .* less than 1"),
        ({"mhc": {"sinkhorn_iters": 0}}, r"mhc.sinkhorn_iters is 0: "),
        ({"mhc": {"sinkhorn_iter": 5}}, r"unknown key 'mhc.sinkhorn_iter'.*'sinkhorn_iters'"),
    ],
)
def test_refuses_bad_values(fields, message):
    with pytest.raises(ConfigError, match=message):
        validate_settings(ModelConfig, fields, "test")


def test_configurations_are_frozen_and_keep_their_values_through_json():
    config = ModelConfig(n_layers=2, mhc=MHCConfig(tau=0.5), softcap=None)
    with pytest.raises(ValidationError, match="frozen"):
        config.n_layers = 3
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("settings", [ModelConfig, MHCConfig])
def test_every_field_has_a_description(settings: type[Settings]):
    for name, field in settings.model_fields.items():
        assert field.description, name


def test_public_names_exist():
    for name in mhc_model.__all__:
        assert getattr(mhc_model, name).__module__.startswith("mhc_model")
    errors = [getattr(mhc_model, name) for name in mhc_model.__all__ if name.endswith("Error")]
    assert all(issubclass(error, mhc_model.MHCError) for error in errors)
    assert len(errors) == 6
