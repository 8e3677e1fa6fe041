"""The command as a user runs it, on Ray Train, and the ways in which it can be killed."""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from processes import is_alive, losses, started, train_workers, wait_for

from mhc_model.settings import dump_settings


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
            workers = set(train_workers(ray_directory))
            assert len(workers) == 2
            os.kill(max(workers), signal.SIGKILL)
            wait_for(
                lambda: len(train_workers(ray_directory).keys() - workers) == 2,
                process,
                "new workers",
            )
            wait_for(lambda: max(losses(run), default=0) >= 21, process, "step 21")
            workers |= train_workers(ray_directory).keys()
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


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_that_stays_is_not_tried_again(tmp_path, make_config, ray_head):
    config = make_config(
        optimizer={"hidden": "adamw", "lr": 1e30, "gradient_clip": None},
        steps=50,
        workers={"num_workers": 1, "max_failures": 3},
        ray={"address": ray_head.address},
    )
    dump_settings(config, tmp_path / "config.yaml")
    command = [sys.executable, "-m", "train", "--config", str(tmp_path / "config.yaml")]
    with started(command, tmp_path / "output.txt") as process:
        status = process.wait(timeout=240)
    output = (tmp_path / "output.txt").read_text()
    assert status == 2, output
    assert re.fullmatch(r"error: .* is (nan|inf).*--optimizer\.lr.*", output.splitlines()[-1])
    assert output.count("model of ") == 1  # only one worker ever trained
    assert not list(Path(config.storage, config.name).glob("failure-*"))
