"""The directory of a run belongs to one process."""

from __future__ import annotations

import pytest

from mhc_model import ConfigError
from rl.config import RLConfig
from rl.directory import locked_run
from rl.tuning import run_tuning


def test_two_drivers_do_not_write_to_one_run(checkpoint, tmp_path):
    config = RLConfig(
        name="t", storage=str(tmp_path), checkpoint=str(checkpoint), problems=4, max_tokens=16
    )
    with (
        locked_run(tmp_path / "t"),
        pytest.raises(ConfigError, match="another process is writing to"),
    ):
        run_tuning(config, {})
    with locked_run(tmp_path / "t"):
        pass  # whoever leaves gives it back
