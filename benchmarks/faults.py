"""What the replica pool and a run survive, tried on this machine.

    python -m benchmarks.faults nodes --checkpoint runs/demo/mhc --nodes 8
    python -m benchmarks.faults replicas --checkpoint runs/demo/mhc --seconds 180 --every 20
    python -m benchmarks.faults driver --checkpoint runs/demo/mhc

- `nodes`: simulated nodes with one fake GPU each; one is lost while it works
- `replicas`: kill -9 of a random replica, again and again, while PPO trains
- `driver`: kill -9 of the training process; the same name resumes, and rewards and gates are
  compared with those of a run that nobody disturbed

The last line is one JSON object; the exit status is 1 if something was lost.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

if not __package__:  # run as a file: Python looks beside it, not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mhc_model import Engine, Request, SamplingParams
from mhc_model.files import read_lines
from mhc_model.settings import RaySettings
from rl.config import PoolSettings

ROOT = Path(__file__).resolve().parents[1]
ROLLOUTS, ITERATION = "rollouts.jsonl", 64
GATE_BOUND = 1e-6  # most by which a gate of a resumed run may differ from the undisturbed one's


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("nodes", "replicas", "driver"))
    parser.add_argument("--checkpoint", required=True, help="checkpoint or run directory")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=180.0, help="for which replicas die")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between their deaths")
    parser.add_argument("--asynchronous", action="store_true", help="of the runs")
    parser.add_argument("--iterations", type=int, default=0, help="of the runs; 0: enough, or 8")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    RaySettings().init_arguments()  # Ray reads the authentication mode while it is imported
    if options.what == "nodes":
        facts = lose_a_node(options.checkpoint, options.nodes)
        good = facts["answers"] == facts["asked"] and facts["lost"] == 0
        good = good and facts["nodes_used"] == options.nodes and facts["equal_to_one_engine"]
    else:
        with tempfile.TemporaryDirectory(prefix="faults-") as directory:
            trial = kill_replicas if options.what == "replicas" else kill_driver
            facts = trial(options, Path(directory))
        good = facts["whole"]
    print(json.dumps(facts))
    return 0 if good else 1


def lose_a_node(checkpoint: str | Path, nodes: int) -> dict[str, Any]:
    """Places a replica on each of some simulated nodes and removes one that works."""
    import ray
    from ray.cluster_utils import Cluster

    from rl.pool import ReplicaPool

    requests = draw_requests(checkpoint, 100 * nodes)
    expected = Engine.from_checkpoint(checkpoint, device="cpu").generate(requests)
    directory = tempfile.mkdtemp(prefix="r-")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "temp_dir": directory, "include_dashboard": False},
    )
    try:
        workers = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(nodes)]
        ray.init(address=cluster.address)
        settings = PoolSettings(
            replicas=nodes,
            cpus_per_replica=1,
            gpus_per_replica=1,
            device="cpu",
            max_batch=8,
            start_deadline_s=300,
        )
        pool = ReplicaPool(checkpoint, settings)
        used = {node for node in pool.nodes if node}
        future = pool.submit(requests)
        while pool.counters.completed < nodes:
            time.sleep(0.01)
        victim = next(node for node in workers if node.node_id in used)
        cluster.remove_node(victim, allow_graceful=False)
        completions = [result.completion for result in future.result()]
        facts = {
            "nodes": nodes,
            "nodes_used": len(used),
            "asked": len(requests),
            "answers": len({completion.request_id for completion in completions}),
            "equal_to_one_engine": [c.tokens for c in completions] == [c.tokens for c in expected],
            "replicas_left": sum(node is not None for node in pool.nodes),
            **pool.describe(),
        }
        pool.close()
        return facts
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def draw_requests(checkpoint: str | Path, count: int) -> list[Request]:
    """Prompts and gates of a seed, greedy, whatever the tokenizer."""
    model = Engine.from_checkpoint(checkpoint, device="cpu").model.config
    generator = torch.Generator().manual_seed(0)
    return [
        Request(
            torch.randint(0, min(250, model.vocab_size), (6,), generator=generator).tolist(),
            gates=torch.rand(model.n_gates, generator=generator).tolist(),
            sampling=SamplingParams(max_tokens=40, ignore_eos=True),
        )
        for _ in range(count)
    ]


def kill_replicas(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Kills a random replica of a run again and again for a while; the run must end by itself."""
    chance = random.Random(options.seed)
    iterations = options.iterations or iterations_of(options, directory)
    run = start(options, directory, "kills", iterations)
    rollouts = directory / "kills" / ROLLOUTS
    wait_for_rollouts(run, rollouts, ITERATION)
    began, killed = time.monotonic(), 0
    while run.poll() is None and time.monotonic() - began < options.seconds:
        victims = replicas_of(run)
        if victims:
            chance.choice(victims).kill()
            killed += 1
        time.sleep(options.every)
    survived_s = time.monotonic() - began
    run.wait(timeout=1200)
    indices = [row["index"] for row in rows_of(rollouts)]
    last = rows_of(directory / "kills" / "metrics.jsonl")[-1]
    return {
        "killed": killed,
        "killing_s": round(survived_s, 1),
        "exit_status": run.returncode,
        "episodes": len(indices),
        "lost_episodes": len(set(range(iterations * ITERATION)) - set(indices)),
        "duplicated_episodes": len(indices) - len(set(indices)),
        **{key: last[key] for key in ("restarted", "retried", "lost", "dropped_runners")},
        "whole": run.returncode == 0
        and survived_s >= options.seconds  # else more --iterations are needed
        and indices == list(range(iterations * ITERATION))
        and last["lost"] == last["dropped_runners"] == 0,
        "output": (directory / "kills.txt").read_text(encoding="utf-8")[-1000:],
    }


def iterations_of(options: argparse.Namespace, directory: Path) -> int:
    """As many as take a little longer than the killing, by the pace of a short run."""
    start(options, directory, "pace", iterations=8).wait()
    rows = rows_of(directory / "pace" / "metrics.jsonl")
    pace = statistics.median(row["rollouts_per_second"] for row in rows[-5:])
    return math.ceil(1.1 * options.seconds * pace / ITERATION)


def kill_driver(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Kills a run between two saved states, resumes it, and compares it with an undisturbed one."""
    iterations = options.iterations or 8
    undisturbed = start(options, directory, "undisturbed", iterations)
    undisturbed.wait()
    first = start(options, directory, "killed", iterations)
    # Somewhere within the iteration after the fourth: the newest saved state is of the fourth.
    wait_for_rollouts(first, directory / "killed" / ROLLOUTS, 4 * ITERATION + 1)
    kill_tree(first)
    saved = sorted(path.name for path in (directory / "killed" / "state").iterdir())
    again = start(options, directory, "killed", iterations)
    again.wait()
    output = (directory / "killed.txt").read_text(encoding="utf-8")
    expected, rows = (rows_of(directory / name / ROLLOUTS) for name in ("undisturbed", "killed"))
    same = {
        key: [row[key] for row in rows] == [row[key] for row in expected]
        for key in ("index", "problem", "reward", "policy_version")
    }
    gates, others = (torch.tensor([row["gates"] for row in each]) for each in (rows, expected))
    same_shape = gates.shape == others.shape
    difference = float((gates - others).abs().max()) if same_shape else math.inf
    return {
        "asynchronous": options.asynchronous,
        "exit_status": again.returncode,
        "saved_states": saved,
        "resumed": [line for line in output.splitlines() if line.startswith("resuming")],
        "episodes": len(rows),
        "superseded": len(rows_of(directory / "killed" / "rollouts.superseded.jsonl")),
        "same": same,
        "largest_gate_difference": difference,
        "whole": again.returncode == 0 and all(same.values()) and difference <= GATE_BOUND,
    }


def start(
    options: argparse.Namespace, directory: Path, name: str, iterations: int
) -> subprocess.Popen[bytes]:
    """`python -m rl` on two replicas, with small iterations."""
    sockets = directory / "ray"  # Ray's socket paths must be short; so is the directory's
    command = [
        *(sys.executable, "-m", "rl", "--config", "tests/data/rl_tiny.yaml", "--name", name),
        *("--checkpoint", str(options.checkpoint), "--storage", str(directory)),
        *("--envs", str(ITERATION), "--rollouts", str(ITERATION), "--ppo.minibatch", "32"),
        *("--iterations", str(iterations), "--checkpoint-every", "2"),
        *("--max-tokens", str(options.max_tokens), "--sweep-problems", "32"),
        *("--ray.temp-dir", str(sockets)),
        *(["--asynchronous"] if options.asynchronous else []),
    ]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    with (directory / f"{name}.txt").open("a") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def replicas_of(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The run's replica processes."""
    return [
        process
        for process in psutil.Process(run.pid).children(recursive=True)
        if "ray::Replica" in " ".join(process.cmdline())
    ]


def wait_for_rollouts(run: subprocess.Popen[bytes], path: Path, count: int) -> None:
    """Returns once the file has that many lines."""
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        if run.poll() is not None:
            raise SystemExit(f"the run in {path.parent} ended with {run.returncode}")
        time.sleep(0.02)


def kill_tree(run: subprocess.Popen[bytes]) -> None:
    """kill -9 of the driver alone, then waits for its Ray processes to end by themselves."""
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    psutil.wait_procs(children, timeout=60)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_lines(path)] if path.exists() else []


if __name__ == "__main__":
    raise SystemExit(main())
