"""Configuration of studies: what is refused, and that the shipped one is valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.settings import EvalSettings
from examples.study import StudyConfig, calibration_steps, seed_steps
from examples.study.values import overridden
from mhc_model import ConfigError
from mhc_model.settings import load_settings, parse_command_line, validate_settings
from rl.ablate import AblateConfig
from train.config import TrainConfig

SHIPPED = Path(__file__).parents[3] / "configs" / "study.yaml"
COMMANDS = {"train": TrainConfig, "evals": EvalSettings, "rl.ablate": AblateConfig}


def test_every_command_of_the_shipped_study_takes_its_configuration(tmp_path):
    config = load_settings(StudyConfig, SHIPPED)
    assert len(config.seeds) >= 5
    steps = [*calibration_steps(config, tmp_path), *seed_steps(config, tmp_path)]
    assert {step.module for step in steps} == set(COMMANDS)
    for step in steps:
        validate_settings(COMMANDS[step.module], dict(step.values), step.name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"seeds": [0, 0]}, "once"),
        ({"reference": "other"}, "reference is 'other'; the variants are plain, mhc"),
        ({"reference": "plain"}, "both 'plain'"),
        ({"variants": {"plain": {}, "mhc": {}, "a/b": {}}}, "variant 'a/b'"),
        ({"variants": {"plain": {}, "mhc": {}, "behaviours": {}}}, "variant 'behaviours'"),
        ({"evals": {"out": "x"}}, "evals has out, which the study sets itself"),
        ({"train": {"steps": 1}}, "train.total_batch_tokens is None"),
        ({"train": {"steps": "many", "total_batch_tokens": 4}}, "train.steps is 'many'"),
        ({"calibration": {"steps": 3, "untimed": 3}}, "none is left to time"),
    ],
)
def test_what_makes_no_study_is_refused(study_config, fields, message):
    with pytest.raises(ConfigError, match=message):
        study_config(**fields)


def test_the_command_line_overrides_fields_of_the_commands():
    flags = ["--config", str(SHIPPED), "--train.steps", "7", "--seeds", "3"]
    config = parse_command_line(StudyConfig, "study", "", flags)
    assert config.train["steps"] == 7
    assert config.seeds == (3,)
    assert config.variants["plain"] == {"model.mhc": None}


def test_overrides_go_by_dotted_keys_and_leave_the_original():
    values = {"model": {"mhc": {"a": 1}}, "steps": 2}
    assert overridden(values, {"model.mhc.b": 2}, "v")["model"] == {"mhc": {"a": 1, "b": 2}}
    assert overridden(values, {"model.mhc": None}, "v") == {"model": {"mhc": None}, "steps": 2}
    assert overridden(values, {"data.levels": [1]}, "v")["data"] == {"levels": [1]}
    assert values == {"model": {"mhc": {"a": 1}}, "steps": 2}
    with pytest.raises(ConfigError, match=r"variant x sets steps.b, but steps is 2"):
        overridden(values, {"steps.b": 1}, "variant x")
