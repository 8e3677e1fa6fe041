"""A reader who follows a document: the blocks that it shows, run in order, for test_reading.py.

Everything is as the document says, with three exceptions, and each only makes it smaller: the
checkpoint of the demo is a tiny one, `python` adds options that let a command end in seconds, and
the port is one that is free.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

from documents import ROOT

from evals.problems import load_problems
from evals.tasks import document
from mhc_model import Decoder, ModelConfig, save_checkpoint
from mhc_model.checkpoint import checkpoint_hash
from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy
from mhc_model.tokenizer import Tokenizer

# What makes a command end in seconds. The last of two options counts.
PPO = (
    "--problems 16 --envs 8 --rollouts 16 --iterations 1 --checkpoint-every 1 --max-tokens 8 "
    "--ppo.minibatch 16 --pool.replicas 1 --ray.num-cpus 2"
)
SMALL = {
    "train": "--steps 2 --warmup-steps 1 --checkpoint-every 2 --eval-every 2 --ray.num-cpus 2 "
    "--workers.num-workers 1 --data.validation-documents 4",
    "train.prepare": "--ray.num-cpus 2",
    "rl": f"{PPO} --sweep-problems 4",
    "rl.ablate": f"{PPO} --test-problems 8 --seeds 0 --arms ppo:global best_constant",
    "evals": "--limit 4 --max-tokens 8 --latency.repeats 1 --latency.batches 1",
    "evals.control": "--limit 4 --max-tokens 8",
    "serve": "--ray.num-cpus 2",
}
PYTHON = """#!{python}
import os, re, subprocess, sys, time
small, arguments = {small!r}, sys.argv[1:]
module = arguments[1] if arguments[:1] == ["-m"] else ""
if not {{"--help", "--dry-run"}} & set(arguments):
    arguments += small.get(module, "").split()
if module != "serve":
    os.execv(sys.executable, [sys.executable, *arguments])
arguments += ["--port", {port!r}]
output = open("serve.txt", "w")
server = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output)
open("serve.pid", "w").write(str(server.pid))
while "serving " not in open("serve.txt").read():
    if server.poll() is not None:
        sys.exit(open("serve.txt").read())
    time.sleep(0.2)
"""
CURL = """#!/bin/sh
exec {curl} --silent --show-error --max-time 60 "$@"
"""
PORT = re.compile(r"(?<=localhost:|127\.0\.0\.1:)\d{4}|(?<=--port )\d+")


class Reader:
    """A directory as a reader has it: the repository's files, and runs of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        for name in ("configs", "docs", "cluster.yaml", "deploy"):
            (directory / name).symlink_to(ROOT / name)
        self._write_data()
        self._write_runs()
        programs = directory / "bin"
        programs.mkdir()
        python = PYTHON.format(python=sys.executable, small=SMALL, port=self.port)
        self._program(programs / "python", python)
        self._program(programs / "curl", CURL.format(curl=shutil.which("curl")))
        self.environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def shell(self, script: str) -> str:
        """Runs what a reader types; gives what it prints.

        Raises:
            AssertionError: if a command fails.
        """
        return self._run(["bash", "-euo", "pipefail", "-c", PORT.sub(self.port, script)])

    def python(self, script: str) -> str:
        """The same for a Python example."""
        return self._run([sys.executable, "-c", PORT.sub(self.port, script)])

    def stop_serving(self) -> None:
        """Ends the server, if a command started one."""
        record = self.directory / "serve.pid"
        if not record.exists():
            return
        process = int(record.read_text())
        record.unlink()
        os.kill(process, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{process}").exists():
            assert time.monotonic() < deadline, (self.directory / "serve.txt").read_text()
            time.sleep(0.1)

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]}\nends with {done.returncode}\n{done.stdout}"
        return done.stdout

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def _write_data(self) -> None:
        story = "The harbour master hid the key under the red boat.\n\n"
        weather = "It rained for a week, and nobody went out to sea.\n\n"
        (self.directory / "book.txt").write_text(weather * 60 + story + weather * 60)
        program = 'hits = search("key", 2)\nreduce("Where is the key?", map("Where?", hits))\n'
        (self.directory / "steps.txt").write_text(program)
        rows = self.directory / "data" / "gsm8k"
        rows.mkdir(parents=True)
        for split in ("train", "test"):
            problems = load_problems("builtin:1", split, 64)
            lines = [json.dumps({"question": p.question, "answer": p.answer}) for p in problems]
            content = ("\n".join(lines) + "\n").encode()
            (rows / f"{split}.jsonl.gz").write_bytes(gzip.compress(content))
            (self.directory / f"{split}.jsonl.gz").write_bytes(gzip.compress(content))

    def _write_runs(self) -> None:
        """A model of the demo's shape and behaviours, a plain one, and a policy; all untrained."""
        demo = self.directory / "runs" / "demo"
        texts = [document(problem) for problem in load_problems("builtin:1,2", "train", 400)]
        tokenizer = Tokenizer.train(texts, 477)
        sizes = {"n_layers": 4, "n_heads": 2, "d_model": 16, "max_seq_len": 128}
        behaviours = {
            "direct": {"gates": [0.0, 0.3], "share": 0.5},
            "worked": {"gates": [0.7, 1.0], "share": 0.5},
        }
        shape = {**sizes, "vocab_size": tokenizer.vocab_size}
        mhc = ModelConfig.model_validate({**shape, "mhc": {}, "behaviours": behaviours})
        save_checkpoint(demo / "mhc", Decoder(mhc, seed=0), tokenizer)
        plain = ModelConfig.model_validate({**shape, "mhc": None})
        save_checkpoint(demo / "baseline", Decoder(plain, seed=0), tokenizer)
        policy = PolicyConfig(
            action_space="global",
            n_layers=mhc.n_layers,
            observation_dim=mhc.d_model,
            checkpoint_hash=checkpoint_hash(demo / "mhc"),
        )
        GatePolicy(policy).save(demo / "rl" / "policy")
