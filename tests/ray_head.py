"""A Ray cluster that all tests of a session share whose subject is not a cluster of its own.

It is a process of its own, so that a test may run a whole command in the tests' process: the
command connects to it (RAY_ADDRESS) as to any cluster, and leaves it running.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mhc_model.settings import RaySettings

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent


class RayHead(NamedTuple):
    """Where the cluster is.

    Attributes:
        address: of the cluster, for RAY_ADDRESS.
        jobs: of its dashboard, for `ray job submit`.
        environment: of its clients.
    """

    address: str
    jobs: str
    environment: dict[str, str]


@cache
def on_shared_cluster(path: str) -> bool:
    """Whether a file of tests, named from the root, uses this cluster."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return any(name in text for name in ("ray_head", "ray_cluster"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def ray_head(cpus: int) -> Iterator[RayHead]:
    """Starts a head node with a dashboard, and ends it."""
    RaySettings().init_arguments()  # this process has the same token, whoever imports Ray first
    port, dashboard, client, agent = free_ports(4)
    directory = tempfile.mkdtemp(prefix="ray-")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--num-cpus", str(cpus), "--temp-dir", directory, "--port", str(port)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)),
    ]
    with Path(directory, "head.txt").open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    head = RayHead(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
    try:
        _wait_until_ready(head, process)
        yield head
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _wait_until_ready(head: RayHead, process: subprocess.Popen) -> None:
    token = head.environment["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(
        f"{head.jobs}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
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
