"""The whole chain on the built-in problems, by the commands that a user would type.

Trains a plain and an mHC model on the same rows with Ray Train: each problem is answered directly
and with its work. The mHC model learns which by its gates (behaviours), the plain one by words in
the question. Then PPO learns which answer a problem is worth, where every token costs; held-out
problems compare all of it, and the served model answers an easy and a hard one.

    make demo            # or: python examples/demo.py [--runs DIR] [--limit N] [--data DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from evals.problems import load_problems

ROOT = Path(__file__).resolve().parent.parent
DATA = "builtin:1,2"
BEHAVIOURS = ("direct", "worked")
TASKS = ("gsm8k", "bpb")  # of every column
OTHER_TASKS = ("gsm8k_8shot", "hellaswag", "arc_easy")
REPORTED = (f"baseline ({BEHAVIOURS[-1]})", "mHC, learned gates", "mHC, RL gates")


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the whole chain on the built-in problems.")
    parser.add_argument("--runs", default=str(ROOT / "runs" / "demo"), help="directory of results")
    parser.add_argument("--limit", type=int, default=400, help="held-out problems to evaluate")
    parser.add_argument(
        "--data",
        default=str(ROOT / "examples" / "data"),
        help="directory with hellaswag/ and arc_easy/, by default 50 problems of each",
    )
    arguments = parser.parse_args()
    runs, data = Path(arguments.runs).resolve(), str(Path(arguments.data).resolve())
    if runs.exists():
        print(f"removing the results of an earlier demo in {runs}", flush=True)
        shutil.rmtree(runs)
    started = time.monotonic()
    baseline, mhc, rl = runs / "baseline", runs / "mhc", runs / "rl"

    train("baseline", runs)
    train("mhc", runs)
    command(
        *("evals.control", "--checkpoint", str(mhc), "--data", DATA),
        *("--limit", str(arguments.limit // 2), "--out", str(runs / "control")),
    )
    command(
        "rl",
        *("--config", "configs/demo_rl.yaml", "--name", "rl", "--storage", str(runs)),
        *("--checkpoint", str(mhc)),
    )
    columns = {
        **{f"baseline ({name})": (baseline, "learned", name) for name in reversed(BEHAVIOURS)},
        "mHC, learned gates": (mhc, "learned", None),
        **{f"mHC, {name}": (mhc, name, None) for name in BEHAVIOURS},
        "mHC, best constant": (mhc, best_constant(rl), None),
        "mHC, RL gates": (mhc, f"policy:{rl / 'policy'}", None),
    }
    results = []
    for position, (checkpoint, gates, words) in enumerate(columns.values()):
        out = runs / f"evals-{position}"
        evaluate(checkpoint, gates, words, out, arguments.limit, TASKS)
        results.append(out / "results.json")
    # The report compares three of them by everything else too, on fewer problems: under a policy
    # every prompt of worked examples has its own gates, and is read anew.
    for position, label in enumerate(REPORTED):
        checkpoint, gates, words = columns[label]
        tasks = (*OTHER_TASKS, *(cost_tasks(baseline) if label == REPORTED[1] else ()))
        out, limit = runs / f"evals-others-{position}", min(arguments.limit, 50)
        evaluate(checkpoint, gates, words, out, limit, (*tasks, "--choice-data", data))
    answers = ask_served_model(mhc, rl / "policy")

    print_routing(mhc)
    print(f"\nOne server, checkpoint {answers['checkpoint'][:12]}:")
    for question, texts in answers["questions"].items():
        print(f"  {question}")
        for gates, text in texts.items():
            print(f"    gates {gates}: {text!r}")
    print(flush=True)
    cost = str(yaml.safe_load((rl / "config.yaml").read_text(encoding="utf-8"))["token_cost"])
    labels = ("--labels", *columns, "--token-cost", cost)
    command("evals.compare", *map(str, results), *labels)
    command("evals.report", str(runs), "--out", str(runs / "report"), "--token-cost", cost)
    print(f"\nResults are in {runs}:")
    for path in sorted(p for p in runs.iterdir() if p.is_dir()):
        print(f"  {path}")
    print(f"tensorboard --logdir {runs}")
    print(f"Whole demo: {time.monotonic() - started:.0f} s")


def train(which: str, runs: Path) -> None:
    command(
        "train",
        *("--config", f"configs/demo_{which}.yaml", "--name", which, "--storage", str(runs)),
    )


def evaluate(
    checkpoint: Path, gates: str, words: str | None, out: Path, limit: int, tasks: tuple[str, ...]
) -> None:
    command(
        "evals",
        *("--checkpoint", str(checkpoint), "--gates", gates),
        *("--data", DATA, "--limit", str(limit), "--out", str(out), "--max-tokens", "64"),
        *("--max-batch", "128"),
        *(() if words is None else ("--words", words)),
        *("--tasks", *tasks),
    )


def cost_tasks(baseline: Path) -> tuple[str, ...]:
    """Latency and memory beside the baseline's, both in one process."""
    latency = {"batches": "8", "prompt-tokens": "64", "new-tokens": "32", "repeats": "5"}
    options = [part for name, value in latency.items() for part in (f"--latency.{name}", value)]
    return ("latency", "memory", *options, "--against", str(baseline))


def best_constant(rl: Path) -> str:
    """The fixed gates with the most reward on training problems, as `--gates` takes them."""
    summary = json.loads((rl / "sweep.json").read_text(encoding="utf-8"))["summary"]
    fixed = {
        label: entry["reward"]
        for label, entry in summary.items()
        if label.startswith("g=") or label in BEHAVIOURS
    }
    return max(fixed, key=fixed.__getitem__).removeprefix("g=")


def command(module: str, *arguments: str) -> None:
    """Runs `python -m module arguments`, shown as it would be typed; stops the demo if it fails."""
    line = ["python", "-m", module, *arguments]
    print(f"\n$ {shlex.join(line)}", flush=True)
    subprocess.run([sys.executable, *line[1:]], cwd=ROOT, env=environment(), check=True)


def environment() -> dict[str, str]:
    # One thread a process: the processes of a stage share the cores already.
    return {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **os.environ}


def ask_served_model(checkpoint: Path, policy: Path) -> dict:
    """Starts the server, asks one question with two gate vectors and stops it."""
    port = free_port()
    line = ["python", "-m", "serve", "--checkpoint", str(checkpoint), "--policy", str(policy)]
    line += ["--port", str(port)]
    print(f"\n$ {shlex.join(line)}", flush=True)
    server = subprocess.Popen([sys.executable, *line[1:]], cwd=ROOT, env=environment())
    base = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(base, server)
        return ask(base)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def ask(base: str) -> dict:
    easy = "Tom has 7 apples. Anna gives Tom 5 more. How many apples does Tom have now?"
    hard = load_problems("builtin:2", "test", 1)[0].question
    answers: dict = {"questions": {}}
    for question in (easy, hard):
        prompt = f"Question: {question}\nAnswer:"
        texts = answers["questions"].setdefault(question, {})
        for gates in (*BEHAVIOURS, "policy"):
            body = {"prompt": prompt, "max_tokens": 64, "temperature": 0, "gates": gates}
            reply = post(f"{base}/v1/completions", body)
            answers["checkpoint"] = reply["checkpoint"]
            texts[gates] = reply["choices"][0]["text"]
    try:
        post(f"{base}/v1/completions", {"prompt": prompt, "gates": 1.1})
    except urllib.error.HTTPError as error:
        message = json.load(error)["error"]["message"]
        print(f"gates 1.1 are refused with {error.code}: {message}", flush=True)
    return answers


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def wait_until_healthy(base: str, server: subprocess.Popen, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"the server ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"the server was not healthy after {timeout_s:.0f} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def print_routing(mhc: Path) -> None:
    """How far training moved the routing, from the run's last validation row."""
    rows = [json.loads(line) for line in (mhc / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "h_res_drift" in row][-1]
    print(f"\nRouting after training: max |H_res - its start| = {last['h_res_drift']:.3f};")
    print(
        f"held-out loss {last['val_loss']:.4f} with learned gates, "
        f"{last['val_loss_gate_0']:.4f} with g = 0, {last['val_loss_gate_1']:.4f} with g = 1"
    )


if __name__ == "__main__":
    main()
