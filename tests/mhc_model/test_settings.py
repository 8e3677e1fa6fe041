"""YAML files and command lines: what is accepted, and what a mistake is told."""

from __future__ import annotations

import pytest
import yaml
from pydantic import Field

from mhc_model import ConfigError, ModelConfig
from mhc_model.settings import (
    RaySettings,
    Settings,
    dump_settings,
    load_settings,
    parse_command_line,
    to_yaml,
)


class Optimizer(Settings):
    lr: float = Field(0.1, gt=0.0, description="step size")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the averages")


class Command(Settings):
    name: str = Field(description="name of the run")
    steps: int = Field(10, ge=1, description="number of steps")
    resume: bool = Field(False, description="go on from the last checkpoint")
    output: str | None = Field(None, description="directory of the results; none means runs/NAME")
    model: ModelConfig = Field(ModelConfig(), description="the model")
    optimizer: Optimizer = Field(Optimizer(), description="the optimizer")


def parse(*argv: str) -> Command:
    return parse_command_line(Command, "prog", "Does things.", argv)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: from-file\n"
        "steps: 7\n"
        "model: {n_layers: 2, d_model: 24, n_heads: 2, mhc: {tau: 0.5}}\n"
        "optimizer:\n  lr: 0.25\n"
    )
    return str(path)


def test_defaults_file_and_overrides(config_file):
    assert parse("--name", "x") == Command(name="x")
    loaded = parse("--config", config_file)
    assert (loaded.name, loaded.steps, loaded.optimizer.lr) == ("from-file", 7, 0.25)
    assert loaded.model.mhc is not None
    assert (loaded.model.mhc.tau, loaded.model.mhc.n_streams) == (0.5, 4)
    changed = parse(
        "--config", config_file, "--steps", "3", "--model.mhc.tau", "0.7", "--optimizer.lr", "1e-3"
    )
    assert (changed.name, changed.steps, changed.optimizer.lr) == ("from-file", 3, 1e-3)
    assert changed.model.mhc.tau == 0.7
    assert changed.model.n_layers == 2, "siblings of an override keep the file's value"


@pytest.mark.parametrize("form", ["last", "equals"])
def test_place_of_config_does_not_matter(config_file, form):
    config = ["--config", config_file] if form == "last" else [f"--config={config_file}"]
    assert parse("--name", "x", "--steps", "5", *config).steps == 5
    assert parse("--name", "x", *config).name == "x"


def test_underscores_booleans_none_and_tuples(config_file):
    command = parse("--config", config_file, "--model.n_layers", "4", "--model.n-kv-heads", "1")
    assert (command.model.n_layers, command.model.n_kv_heads) == (4, 1)
    command = parse(
        "--name", "x", "--resume", "--output", "None", "--optimizer.betas", "0.5", "0.6"
    )
    assert command.resume
    assert command.output is None
    assert command.optimizer.betas == (0.5, 0.6)


def test_dry_run_prints_yaml_that_loads_back(config_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse("--dry-run", "--config", config_file, "--optimizer.lr", "3")
    assert exit_.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_settings(Command, printed) == parse("--config", config_file, "--optimizer.lr", "3")


def test_dump_and_load(tmp_path):
    command = Command(name="ä: yes", output="null", optimizer=Optimizer(lr=1e-7))
    path = tmp_path / "config.yaml"
    dump_settings(command, path)
    assert load_settings(Command, path) == command
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert list(yaml.safe_load(to_yaml(command))) == list(Command.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nstep: 3", r"unknown key 'step'; did you mean 'steps'\?"),
        ("name: x\noptimizer: {lrr: 3}", r"unknown key 'optimizer.lrr'; did you mean 'lr'\?"),
        (
            "name: x\nmodel: {mhc: {sinkhorn_iter: 3}}",
            r"unknown key 'model.mhc.sinkhorn_iter'; did you mean 'sinkhorn_iters'\?",
        ),
        ("name: x\nzzz: 3", r"unknown key 'zzz'; allowed: model, name, optimizer, output"),
        ("name: x\nlr: 3", r"unknown key 'lr'; did you mean 'optimizer.lr'\?"),
        ("name: x\nsteps: 0", r"steps is 0: .*greater than or equal to 1"),
        ("name: x\nsteps: 1.5", r"steps is 1.5: .*integer"),
        ("name: x\nsteps:", r"steps is None: .*integer"),
        ("name: x\noptimizer: {lr: .nan}", r"optimizer.lr is nan: "),
        ("name: x\noptimizer: {lr: .inf}", r"optimizer.lr is inf: .*finite"),
        ("name: x\noptimizer: 3", r"optimizer is 3: "),
        ("name: x\nsteps: 0\nstep: 3", r"steps is 0.*; unknown key 'step'"),
        ("steps: 3", r"name is .*: Field required"),
        ("", r"name is .*: Field required"),
        ("- name", r"configuration is \['name'\]: "),
        ("name: [x", r"is not YAML"),
        ("name: \xff", r"is not YAML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as error:
        load_settings(Command, path)
    assert "wrong.yaml" in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        parse("--config", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        parse("--config", str(tmp_path))
    with pytest.raises(ConfigError, match="--config needs a file name"):
        parse("--name", "x", "--config")


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["--model.mhc.tau", "-1"], ["tau", "greater than 0", "-1"]),
        (["--model.n-heads", "5"], ["d_model 24 is not a multiple of n_heads 5"]),
        (["--steps", "x"], ["--steps", "'x'"]),
        (["--model.n-headss", "5"], ["--model.n-headss", "--model.n-heads"]),
    ],
)
def test_a_wrong_override_is_explained_and_exits_with_2(config_file, capsys, argv, fragments):
    with pytest.raises(SystemExit) as exit_:
        parse("--config", config_file, *argv)
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.replace("│", " ")
    message = " ".join(lines.split())
    for fragment in fragments:
        assert fragment in message


def test_a_wrong_top_level_override_is_an_error(config_file, capsys):
    with pytest.raises((ConfigError, SystemExit)) as error:
        parse("--config", config_file, "--steps", "0")
    message = str(error.value) + capsys.readouterr().err
    assert "steps" in message
    assert "greater than or equal to 1" in " ".join(message.split())


@pytest.mark.parametrize("field", ["address", "num_cpus", "temp_dir"])
def test_ray_settings_default_to_a_private_cluster(field):
    assert getattr(RaySettings(), field) is None


def test_ray_arguments(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    private = RaySettings(num_cpus=2, temp_dir="/r").init_arguments()
    assert private == {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": 2,
        "_temp_dir": "/r",
    }
    assert RaySettings(address="auto").init_arguments()["address"] == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert RaySettings().init_arguments()["address"] == "10.0.0.1:6379"
