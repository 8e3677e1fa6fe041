"""The time of a step, from trainings in turn."""

from __future__ import annotations

import json

import pytest

from examples.study import calibration_steps
from examples.study.calibrate import measure, read_calibration, summarise
from mhc_model.errors import DataError


def test_ratios_are_taken_within_a_round():
    # The machine is twice and ten times as slow in later rounds: the ratio stays.
    rounds = [{"plain": 1.0, "mhc": 2.0}, {"plain": 2.2, "mhc": 4.0}, {"plain": 9.0, "mhc": 20.0}]
    found = summarise(rounds, "mhc")
    assert found["ratios"] == {"plain": 0.5, "mhc": 1.0}
    assert found["seconds"] == {"plain": 2.2, "mhc": 4.0}


def test_first_steps_do_not_count(study_config, tmp_path):
    config = study_config()
    steps = calibration_steps(config, tmp_path)
    for step, seconds in zip(steps, (0.1, 0.4), strict=True):
        place = tmp_path / step.name
        place.mkdir(parents=True)
        rows = [{"step": 1, "dt": 7.0}, {"step": 2, "dt": seconds}, {"step": 3, "dt": seconds}]
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_calibration(tmp_path) is None
    found = measure(config, tmp_path, steps)
    assert found["ratios"] == {"plain": 0.25, "mhc": 1.0}
    assert read_calibration(tmp_path) == found
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(DataError, match=r"calibration\.json cannot be read"):
        read_calibration(tmp_path)
