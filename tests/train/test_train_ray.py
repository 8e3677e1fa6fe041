"""The command as a user runs it, on Ray Train, and the ways in which it can be killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mhc_model.settings import dump_settings

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


def train_workers(ray_directory: str) -> set[int]:
    """Process ids of the living Ray Train workers of the cluster that keeps its files there."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                parent = re.search(r"PPid:\s(\d+)", (process / "status").read_text()).group(1)
                if ray_directory.encode() in Path("/proc", parent, "cmdline").read_bytes():
                    found.add(int(process.name))
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
def started(command: list[str], output: Path) -> Iterator[subprocess.Popen]:
    """Runs the command in a process group of its own, which is killed at the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_worker_and_killed_run_end_as_if_nothing_had_happened(
    tmp_path, make_config, make_trainer, persist_in
):
    # Workers run on for up to a second after their driver was killed, some 20 of these steps.
    steps = 96
    changes = {"steps": steps, "checkpoint_every": 6, "eval_every": steps, "device_batch": 8}
    straight = make_trainer(make_config(name="straight", **changes))
    straight.fit(persist_in(straight.run))
    expected = losses(Path(straight.run.path))

    ray_directory = tempfile.mkdtemp(prefix="ray-")
    config = make_config(
        **changes,
        workers={"num_workers": 2},
        ray={"address": "local", "num_cpus": 2, "temp_dir": ray_directory},
    )
    run = Path(config.storage, config.name)
    dump_settings(config, tmp_path / "config.yaml")
    command = [sys.executable, "-m", "train", "--config", str(tmp_path / "config.yaml")]
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    try:
        with started(command, first) as process:
            wait_for(lambda: max(losses(run), default=0) >= 9, process, "step 9")
            workers = train_workers(ray_directory)
            assert len(workers) == 2
            os.kill(max(workers), signal.SIGKILL)
            wait_for(
                lambda: len(train_workers(ray_directory) - workers) == 2, process, "new workers"
            )
            wait_for(lambda: max(losses(run), default=0) >= 21, process, "step 21")
            workers |= train_workers(ray_directory)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            deadline = time.monotonic() + 30
            while any(map(is_alive, workers)):
                assert time.monotonic() < deadline, "a worker outlived its run"
                time.sleep(0.1)
        reached = max(losses(run))
        assert reached < steps
        with started(command, second) as process:
            assert process.wait(timeout=240) == 0, second.read_text()
        resumed = re.search(r"resuming after step (\d+)", second.read_text())
        # What is lost: the interval it was in, or two where the kill cut a save short.
        assert reached - int(resumed.group(1)) <= 6 + reached % 6
        found = losses(run)
        assert sorted(found) == list(range(1, steps + 1))
        assert [found[step] for step in sorted(found)] == pytest.approx(
            [expected[step] for step in sorted(expected)], abs=1e-4
        )
    finally:
        shutil.rmtree(ray_directory, ignore_errors=True)
