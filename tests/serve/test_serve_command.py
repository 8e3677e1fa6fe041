"""`python -m serve` as a user runs it: real Ray Serve, real HTTP, signals."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from mhc_model import ConfigError, Engine, Request, SamplingParams
from mhc_model.checkpoint import checkpoint_hash
from mhc_model.policy import GatePolicy, PolicyConfig
from mhc_model.settings import load_settings
from serve.__main__ import check_settings, main
from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 40


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


def test_serve_files_can_name_the_application(checkpoint):
    """`serve deploy` gives `build` plain arguments, of the type that its annotation says."""
    # In a process of its own: Ray reads the environment for good when it is imported.
    program = (
        "import sys; from serve.deployment import build;"
        "from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call;"
        "app = call(build, {'checkpoint': sys.argv[1], 'replicas': 3});"
        "print(app._bound_deployment.num_replicas)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(checkpoint)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "3\n", result.stderr


@contextlib.contextmanager
def running_server(checkpoint: Path, policy: Path):
    """The command in a session of its own; yields the process and the URL that it printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray_directory = tempfile.mkdtemp(prefix="mhc-")  # short: Ray's sockets lie in it
    command = [sys.executable, "-m", "serve", "--checkpoint", str(checkpoint)]
    command += ["--policy", str(policy), "--port", str(port), "--ray.temp-dir", ray_directory]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        assert process.stdout is not None
        printed = process.stdout.readline()
        assert url in printed, f"printed {printed!r} and ended with {process.poll()}"
        yield process, url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(ray_directory, ignore_errors=True)


def session_members(session: int) -> list[str]:
    """Command lines of the live processes of a session."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # pid (name) state ppid pgrp session ...; the name may contain spaces.
            state, _, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                members.append((entry / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return members


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_the_command_serves_and_stops(checkpoint, policy_directory, tokenizer):
    body = {"prompt": "Question: Tom", "max_tokens": 12, "temperature": 0}
    engine = Engine.from_checkpoint(checkpoint, device="cpu")
    with running_server(checkpoint, policy_directory) as (process, url):
        with httpx.Client(base_url=url, timeout=30) as client:
            _check_answers(client, body, engine)
            _check_mistakes(client, body)
            _check_disconnect(url, client)
            assert client.post("/v1/completions", json=body).status_code == 200
        assert len(session_members(process.pid)) > 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
        deadline = time.monotonic() + 10
        while session_members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert session_members(process.pid) == []


def _check_answers(client: httpx.Client, body: dict, engine: Engine) -> None:
    prompt = engine.tokenizer.encode(body["prompt"], bos=True)
    texts = []
    for gates in (0.0, [1.0, 0.5, 0.0]):
        answer = client.post("/v1/completions", json={**body, "gates": gates}).json()
        request = Request(prompt, gates=gates, sampling=SamplingParams(max_tokens=12))
        assert answer["choices"][0]["text"] == engine.generate([request])[0].text
        texts.append(answer["choices"][0]["text"])
    assert texts[0] != texts[1]
    answer = client.post("/v1/completions", json={**body, "gates": "policy"}).json()
    assert answer["gates_source"] == "policy"
    assert client.get("/health").json()["checkpoint"] == engine.checkpoint_hash
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


def _check_mistakes(client: httpx.Client, body: dict) -> None:
    json_type = {"Content-Type": "application/json"}
    mistakes = [
        (client.post("/v1/completions", json={**body, "gates": [0.5, 2]}), 400),
        (client.post("/v1/completions", json={**body, "max_tokens": 1000}), 400),
        (client.post("/v1/completions", content=b'{"prompt": NaN}', headers=json_type), 400),
        (client.post("/v1/completions", content=b"\xff\xfe", headers=json_type), 400),
        (client.post("/v1/completions", content=b"a" * (5 << 20), headers=json_type), 413),
        (client.get("/v1/nothing"), 404),
        (client.put("/v1/completions"), 405),
    ]
    for response, status in mistakes:
        assert response.status_code == status
        assert response.json()["error"]["message"]


def _check_disconnect(url: str, client: httpx.Client) -> None:
    """Seconds of work are dropped when the client goes away."""
    work = {"prompt": [[1, 2, 3]] * 280, "max_tokens": 90, "seed": 1}
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{url}/v1/completions", json=work, timeout=0.7)
    deadline = time.monotonic() + 5
    while True:
        health = client.get("/health").json()
        if health["active"] + health["waiting"] == 0:
            return
        assert time.monotonic() < deadline, health
        time.sleep(0.05)
