"""`python -m rl` from end to end on a tiny model: results, resuming, refusals, no Ray to load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mhc_model import ConfigError, save_checkpoint
from rl.__main__ import main

pytestmark = pytest.mark.ray


@pytest.fixture
def arguments(checkpoint, tmp_path, short_directory) -> list[str]:
    return [
        *("--config", "configs/demo_rl.yaml", "--name", "tiny", "--storage", str(tmp_path)),
        *("--checkpoint", str(checkpoint), "--envs", "8", "--rollouts", "16"),
        *("--ppo.minibatch", "8", "--max-tokens", "4", "--sweep-problems", "8"),
        *("--problems", "20", "--checkpoint-every", "1", "--pool.replicas", "1"),
        *("--ray.temp-dir", short_directory),
    ]


@pytest.mark.slow
def test_run_resume_and_load_without_ray(arguments, tmp_path, capfd):
    directory = tmp_path / "tiny"
    assert main([*arguments, "--iterations", "1"]) == 0
    first = rows(directory / "rollouts.jsonl")
    assert main([*arguments, "--iterations", "3"]) == 0
    output = capfd.readouterr().out
    assert "resuming after iteration 1, rollout 16" in output
    assert "lost 0" in output

    rollouts = rows(directory / "rollouts.jsonl")
    assert rollouts[:16] == first, "resuming overwrites nothing"
    assert [row["index"] for row in rollouts] == list(range(48))
    assert [row["iteration"] for row in rollouts] == [1] * 16 + [2] * 16 + [3] * 16
    assert all(len(row["gates"]) == 4 and row["reward"] in (0.0, 1.0) for row in rollouts)
    metrics = rows(directory / "metrics.jsonl")
    assert [row["iteration"] for row in metrics] == [1, 2, 3]
    assert metrics[-1]["lost"] == 0
    summary = json.loads((directory / "summary.json").read_text())["summary"]
    assert {"learned", "g=0", "g=0.5", "g=1", "policy"} < set(summary)
    assert list(directory.glob("tensorboard/events*"))

    assert main([*arguments, "--iterations", "3"]) == 0
    assert "complete at iteration 3" in capfd.readouterr().out
    assert main([*arguments, "--iterations", "3", "--seed", "5"]) == 2
    assert "seed: 0 -> 5" in capfd.readouterr().err

    assert gates_without_ray(directory / "policy", "5 6 7") == gates_without_ray(
        directory / "policy", "5 6 7"
    )


@pytest.mark.slow
def test_a_replica_killed_during_a_run_loses_no_episode(arguments, tmp_path):
    directory = tmp_path / "tiny"
    command = [sys.executable, "-m", "rl", *arguments, "--iterations", "8", "--max-tokens", "40"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        victim = wait_for_replica(run, directory / "rollouts.jsonl")
        victim.kill()
        output, _ = run.communicate(timeout=240)
    finally:
        run.kill()
    assert run.returncode == 0, output
    rollouts = rows(directory / "rollouts.jsonl")
    assert [row["index"] for row in rollouts] == list(range(128))
    last = rows(directory / "metrics.jsonl")[-1]
    assert last["restarted"] >= 1
    assert last["lost"] == 0
    assert last["completed"] == last["requested"]


def wait_for_replica(run: subprocess.Popen, rollouts: Path) -> psutil.Process:
    """The replica's process, once episodes come in."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and run.poll() is None:
        if rollouts.exists() and len(rollouts.read_text().splitlines()) >= 16:
            for process in psutil.Process(run.pid).children(recursive=True):
                if "ray::Replica" in " ".join(process.cmdline()):
                    return process
        time.sleep(0.05)
    run.kill()
    raise AssertionError(f"no replica at work: {run.communicate()[0]}")


def gates_without_ray(policy: Path, prompt: str) -> list[float]:
    """Loads the policy in a Python where importing Ray or RLlib fails."""
    script = (
        "import sys\n"
        "sys.modules['ray'] = None\n"
        "import torch\n"
        "from mhc_model.policy import GatePolicy\n"
        "policy = GatePolicy.load(sys.argv[1])\n"
        "observation = torch.linspace(-1, 1, policy.config.observation_dim)[None]\n"
        "print(policy.gates(observation)[0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(policy), prompt],
        capture_output=True,
        text=True,
        check=True,
    )
    gates = json.loads(done.stdout)
    assert len(gates) == 4
    assert all(0.0 < gate < 1.0 for gate in gates)
    return gates


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_plain_model_is_refused(arguments, tmp_path, tiny_model, tokenizer, capsys):
    save_checkpoint(
        tmp_path / "plain",
        tiny_model(plain=True, vocab_size=tokenizer.vocab_size),
        tokenizer,
    )
    assert main([*arguments, "--checkpoint", str(tmp_path / "plain")]) == 2
    assert "plain model (mhc: null): it has no gates" in capsys.readouterr().err


def test_impossible_sizes_are_refused(arguments):
    with pytest.raises((ConfigError, SystemExit)):
        main([*arguments, "--rollouts", "17"])
