"""The parts as tasks of Ray Data, killed on the way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from corpora import TEXTS, content, write_rows

from mhc_model.settings import dump_settings
from train.prepare import prepare

ROOT = Path(__file__).parents[3]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_preparation_on_ray_goes_on(make, tmp_path):
    texts = [f"{text} {i}" for i in range(60) for text in TEXTS]
    path = write_rows(tmp_path / "a.jsonl", texts)
    whole = make(path, out=str(tmp_path / "whole"), part_bytes=100_000)
    prepare(whole)
    ray_directory = tempfile.mkdtemp(prefix="ray-")
    config = make(
        path,
        part_bytes=100_000,
        ray={"address": "local", "num_cpus": 2, "temp_dir": ray_directory},
    )
    dump_settings(config, tmp_path / "config.yaml")
    command = [sys.executable, "-m", "train.prepare", "--config", str(tmp_path / "config.yaml")]
    options: dict[str, Any] = {
        "cwd": ROOT,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "start_new_session": True,
        "stderr": subprocess.STDOUT,
    }
    records = Path(config.out, "parts")
    try:
        with (tmp_path / "first.txt").open("w") as output:
            process = subprocess.Popen(command, stdout=output, **options)
            deadline = time.monotonic() + 200
            while len(list(records.glob("*.json"))) < 3:
                assert time.monotonic() < deadline, "no part in time"
                assert process.poll() is None, (tmp_path / "first.txt").read_text()
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not Path(config.out, "manifest.json").exists()
        kept = {path: path.stat().st_mtime_ns for path in Path(config.out).glob("*-0000[01].bin")}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=240, **options)
        assert done.returncode == 0, done.stdout
        finished = re.search(r"parts of about 100,000 bytes, (\d+) of them finished", done.stdout)
        assert int(finished[1]) >= 3
        assert "tokens/s" in done.stdout
        assert kept == {path: path.stat().st_mtime_ns for path in kept}
        assert content(config.out) == content(whole.out)
    finally:
        shutil.rmtree(ray_directory, ignore_errors=True)
