"""`ray job submit` to a cluster that is already there."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node with a dashboard: its address for jobs and the environment of its clients."""
    port, dashboard, client, agent = free_ports(4)
    directory = tempfile.mkdtemp(prefix="ray-")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--num-cpus", "2", "--temp-dir", directory, "--port", str(port)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)),
    ]
    with (tmp_path / "head.txt").open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_until_ready(address, environment["RAY_AUTH_TOKEN"], process)
        yield address, environment
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def wait_until_ready(address: str, token: str, process: subprocess.Popen) -> None:
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "ray start ended"
        assert time.monotonic() < deadline, "the head node was not ready in time"
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.3)


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_trains_on_the_running_cluster(head, tmp_path):
    address, environment = head
    submit = [
        *(str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", "."),
        *("--", "python", "-m", "train", "--config", "configs/demo_mhc.yaml"),
        *("--name", "job", "--storage", str(tmp_path), "--steps", "2"),
        *("--data.builtin-count", "400", "--data.validation-documents", "4"),
        *("--model.n-layers", "1", "--model.d-model", "32"),
    ]
    result = subprocess.run(
        submit, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "succeeded" in result.stdout
    assert re.search(r"step 2/2 \| loss", result.stdout)
    assert (tmp_path / "job" / "step-000002" / "model" / "model.safetensors").is_file()
