"""The switches of the family of hyper-connections, and which of them go together."""

from __future__ import annotations

import pytest

from mhc_model import ConfigError, MHCConfig, ModelConfig
from mhc_model.config import PRESETS
from mhc_model.settings import validate_settings


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"projection": "identities"}, r"mhc\.projection"),
        ({"projection": "kronecker", "n_streams": 6}, r"n_streams is 6;.*2, 4 or 8"),
        ({"gates": "accept"}, r"gates is 'accept' with the projection 'limit'"),
        ({"gates": "ignore"}, r"mhc\.gates"),
        ({"dynamic": False, "projection_std": 0.01}, r"projection_std is 0\.01, but dynamic"),
        ({"dynamic": False, "scale_init": 1.0}, r"scale_init is 1\.0, but dynamic is false"),
        ({"dynamic": False, "single_pass": True}, r"single_pass is true, but dynamic is false"),
        ({"collapse": "sum"}, r"mhc\.collapse"),
        ({"dynamic": False, "preset": "published"}, r"projection_std is 0\.01, but dynamic"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        validate_settings(ModelConfig, {"mhc": fields}, "test")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_take_the_switches(preset):
    static = {"dynamic": False, "projection_std": 0.0, "scale_init": None}
    for fields in ({"projection": "identity"}, static):
        config = MHCConfig(preset=preset, **fields)
        assert config == MHCConfig(**config.model_dump())
        assert config.mixes is (fields is static)


def test_a_model_whose_streams_do_not_mix_has_no_gates():
    identity = ModelConfig(n_layers=3, mhc=MHCConfig(projection="identity"))
    assert identity.n_gates == 0
    assert "mhc.projection: identity" in identity.gateless
    accepting = ModelConfig(n_layers=3, mhc=MHCConfig(projection="identity", gates="accept"))
    assert (accepting.n_gates, accepting.gateless) == (6, None)
    assert (ModelConfig(n_layers=3, mhc=MHCConfig()).n_gates, ModelConfig().n_gates) == (6, 0)
    values = {**identity.model_dump(), "behaviours": {"direct": {"gates": [0.0, 0.3]}}}
    with pytest.raises(ConfigError, match=r"behaviours are direct.*without mixing"):
        validate_settings(ModelConfig, values, "test")
