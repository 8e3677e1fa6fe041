"""What `python -m serve` says before anything is started."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from vllm_engines import HAS_VLLM

from mhc_model import ConfigError, Engine
from mhc_model.checkpoint import checkpoint_hash
from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy
from serve.__main__ import main
from serve.auth import VARIABLE
from serve.checks import check_settings
from serve.settings import ServeSettings


def settings_of(checkpoint: Path, **fields) -> ServeSettings:
    return ServeSettings(checkpoint=str(checkpoint), **fields)


@pytest.fixture(scope="module")
def policy_directory(tmp_path_factory, checkpoint) -> Path:
    directory = tmp_path_factory.mktemp("policy") / "policy"
    model = Engine.from_checkpoint(checkpoint, device="cpu").model
    config = PolicyConfig(
        action_space="per_layer",
        n_layers=model.config.n_layers,
        observation_dim=model.config.d_model,
        checkpoint_hash=checkpoint_hash(checkpoint),
    )
    GatePolicy(config).save(directory)
    return directory


def test_mistakes_are_found_before_ray_starts(checkpoint, policy_directory, tmp_path, capsys):
    started = time.monotonic()
    cases = {
        f"--checkpoint {tmp_path / 'nothing'}": "not a directory",
        f"--checkpoint {tmp_path}": "no checkpoint in",
        f"--checkpoint {checkpoint} --policy {tmp_path}": "no policy directory",
        f"--checkpoint {checkpoint} --host 192.0.2.200": "cannot listen",
    }
    if not HAS_VLLM:
        cases[f"--checkpoint {checkpoint} --engine vllm"] = "vLLM is not installed"
    for arguments, reason in cases.items():
        assert main(arguments.split()) == 2
        assert reason in capsys.readouterr().err
    assert time.monotonic() - started < 5


def test_a_port_in_use_and_a_foreign_policy_are_refused(
    checkpoint, plain_checkpoint, policy_directory
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="--port"):
            check_settings(settings_of(checkpoint, port=taken.getsockname()[1]))
    with pytest.raises(ConfigError, match=checkpoint_hash(checkpoint)):
        check_settings(settings_of(plain_checkpoint, policy=str(policy_directory)))


def test_a_server_open_to_all_without_keys_is_warned_of_once(
    checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv(VARIABLE, raising=False)
    check_settings(settings_of(checkpoint, port=free_port()))
    assert capsys.readouterr().err == ""
    check_settings(settings_of(checkpoint, port=free_port(), host="0.0.0.0"))
    assert capsys.readouterr().err.count("without API keys") == 1
    (tmp_path / "keys").write_text("key-number-1")
    (tmp_path / "keys").chmod(0o600)
    keys = str(tmp_path / "keys")
    check_settings(settings_of(checkpoint, port=free_port(), host="0.0.0.0", api_keys_file=keys))
    assert capsys.readouterr().err == ""
    (tmp_path / "keys").chmod(0o640)
    check_settings(settings_of(checkpoint, port=free_port(), api_keys_file=keys))
    assert "chmod 600" in capsys.readouterr().err
    (tmp_path / "keys").write_text("# none")
    with pytest.raises(ConfigError, match="no key"):
        check_settings(settings_of(checkpoint, port=free_port(), api_keys_file=keys))
    with pytest.raises(ConfigError, match="access_log"):
        check_settings(settings_of(checkpoint, port=free_port(), access_log=str(tmp_path)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
