"""What `python -m serve` and Serve's configuration file say before anything is started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from vllm_engines import HAS_VLLM

from mhc_model import ConfigError, Engine
from mhc_model.checkpoint import checkpoint_hash
from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy
from mhc_model.settings import load_settings, validate_settings
from serve.__main__ import main
from serve.auth import VARIABLE
from serve.checks import check_settings
from serve.proxy import proxy_environment
from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]


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


def test_the_shipped_configuration_loads():
    settings = load_settings(ServeSettings, ROOT / "configs" / "serve.yaml")
    assert settings.port == 8000


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


def test_a_server_open_to_all_without_keys_is_warned_of_once(
    checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv(VARIABLE, raising=False)
    check_settings(settings_of(checkpoint, port=free_port()))
    assert capsys.readouterr().err == ""
    check_settings(settings_of(checkpoint, port=free_port(), host="0.0.0.0"))
    assert capsys.readouterr().err.count("without API keys") == 1
    (tmp_path / "keys").write_text("key-number-1")
    keys = str(tmp_path / "keys")
    check_settings(settings_of(checkpoint, port=free_port(), host="0.0.0.0", api_keys_file=keys))
    assert capsys.readouterr().err == ""
    (tmp_path / "keys").write_text("# none")
    with pytest.raises(ConfigError, match="no key"):
        check_settings(settings_of(checkpoint, port=free_port(), api_keys_file=keys))
    with pytest.raises(ConfigError, match="access_log"):
        check_settings(settings_of(checkpoint, port=free_port(), access_log=str(tmp_path)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PROGRAM = """
import json, sys
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call
from ray.serve.schema import ServeDeploySchema
from ray._common.utils import import_attr
schema = ServeDeploySchema.model_validate(json.loads(sys.argv[1]))
deployments = []
for application in schema.applications:
    for more in ({}, {"max_replicas": 5, "target_ongoing_requests": 7, "max_ongoing_requests": 9}):
        app = call(import_attr(application.import_path), application.args | more)
        deployment = app._bound_deployment
        scaling = deployment._deployment_config.autoscaling_config
        deployments.append({
            "replicas": deployment.num_replicas,
            "ongoing": deployment.max_ongoing_requests,
            "drain_s": deployment._deployment_config.graceful_shutdown_timeout_s,
            "actor": deployment.ray_actor_options,
            "scaling": scaling and [scaling.min_replicas, scaling.max_replicas,
                                    scaling.target_ongoing_requests],
        })
environment = schema.controller_options.runtime_env["env_vars"]
print(json.dumps([environment, schema.http_options.host, deployments]))
"""


def test_the_shipped_application_file_is_what_serve_deploy_takes(checkpoint):
    """Serve's own schema and builder read it; the proxies get the environment that it needs."""
    content = yaml.safe_load((ROOT / "configs" / "serve_app.yaml").read_text())
    (application,) = content["applications"]
    settings = validate_settings(ServeSettings, application["args"], "serve_app.yaml")
    assert settings.max_replicas is not None
    for field in ("max_replicas", "target_ongoing_requests"):
        application["args"].pop(field)
    application["args"] |= {"checkpoint": str(checkpoint), "replicas": 3, "gpus_per_replica": 0.5}
    # In a process of its own: Ray reads the environment for good when it is imported.
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(content)]
    environment = os.environ | {VARIABLE: "key-number-1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    proxies, host, (fixed, scaled) = json.loads(done.stdout)
    assert proxies == proxy_environment(settings.request_timeout_s, settings.access_log)
    assert host == "127.0.0.1"
    assert (fixed["replicas"], fixed["scaling"]) == (3, None)
    assert fixed["ongoing"] > settings.max_batch + settings.max_queue
    assert fixed["drain_s"] == settings.drain_s
    assert fixed["actor"] == {"num_cpus": 1, "num_gpus": 0.5}
    assert scaled["scaling"] == [3, 5, 7]
    assert scaled["ongoing"] == 9
