"""Settings of a server: the shipped ones load, and those that do not fit are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhc_model import ConfigError
from mhc_model.settings import load_settings, validate_settings
from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_configuration_loads():
    settings = load_settings(ServeSettings, ROOT / "configs" / "serve.yaml")
    assert settings.port == 8000


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"replicas": 3, "max_replicas": 2}, "at least 3"),
        ({"target_ongoing_requests": 5}, "max_replicas"),
        ({"dtype": "float8"}, "bfloat16"),
        ({"cuda_graphs": True}, "gpus_per_replica"),
        ({"drain_s": 0}, "drain_s"),
        ({"max_batches": 4}, "max_batch"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, reason):
    with pytest.raises(ConfigError, match=reason):
        validate_settings(ServeSettings, {"checkpoint": "x", **fields}, "test")
