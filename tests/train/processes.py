"""The command as a process, and what its metrics and its workers show from outside."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


def losses(run: Path) -> dict[int, float]:
    """Step -> loss of all whole rows so far."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    assert len(rows) == len({row["step"] for row in rows}), "a step occurs twice"
    return {row["step"]: row["loss"] for row in rows}


def wait_for(condition: Callable[[], object], process: subprocess.Popen, what: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        assert process.poll() is None, f"ended with {process.returncode}, waiting for {what}"
        time.sleep(0.02)


def train_workers(ray_directory: str) -> dict[int, int]:
    """Living Ray Train workers of the cluster that keeps its files there, each with the process id
    of its node (the raylet, its parent)."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                parent = re.search(r"PPid:\s(\d+)", (process / "status").read_text()).group(1)
                if ray_directory.encode() in Path("/proc", parent, "cmdline").read_bytes():
                    found[int(process.name)] = int(parent)
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return found


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextmanager
def started(
    command: list[str], output: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """Runs the command in a process group of its own, which is killed at the end."""
    environment = (
        os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | (environment or {})
    )
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
