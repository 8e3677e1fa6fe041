"""How many rollouts a second the pool makes: together, one at a time, and with more replicas.

    python -m benchmarks.rollouts --checkpoint runs/demo/mhc

- a rollout is a problem answered greedily under gates of its own, and scored
- `loop`: one at a time, the whole text through the model again for every token, as a plain
  generation loop does it; `single`: one at a time through one replica; `batch`: all at once
  through the same replica of 32 rows; `two`: the same through two replicas, each with one thread
- all in turn, A B C D A B C D ..., after a warm-up; ratios are medians of those within a round
- the last line of the output is everything as one JSON object

The machine must be quiet, and `two` needs as many cores as replicas and one for the pool's thread:
with two cores that thread takes its share of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: Python looks beside it, not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import quantile
from evals.problems import Problem, load_problems
from evals.tasks import prompt_tokens, score
from mhc_model.checkpoint import Checkpoint, load_checkpoint
from mhc_model.settings import RaySettings
from rl.config import PoolSettings, RLConfig

NAMES = ("loop", "single", "batch", "two")


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    arguments = RaySettings(num_cpus=4).init_arguments()  # before Ray is imported
    import ray

    from rl.pool import ReplicaPool
    from rl.rollouts import Asker

    torch.set_num_threads(1)
    checkpoint = load_checkpoint(options.checkpoint)
    problems = load_problems(options.data, "train", options.problems)
    generator = torch.Generator().manual_seed(0)
    gates = torch.rand(len(problems), checkpoint.model.config.n_gates, generator=generator)
    config = RLConfig(name="t", checkpoint=options.checkpoint, max_tokens=options.max_tokens)
    directory = tempfile.mkdtemp(prefix="r-")
    ray.init(**{**arguments, "_temp_dir": directory})
    try:
        pools = [
            ReplicaPool(options.checkpoint, PoolSettings(replicas=count, max_batch=options.batch))
            for count in (1, 2)
        ]
        one, two = (Asker(pool, checkpoint.tokenizer, config) for pool in pools)
        few = range(options.few)
        rates = measure(
            {
                "loop": lambda: run_loop(checkpoint, problems[: len(few)], gates, config),
                "single": lambda: [one.ask([problems[i]], gates[i : i + 1]) for i in few],
                "batch": lambda: one.ask(problems, gates),
                "two": lambda: two.ask(problems, gates),
            },
            {"loop": len(few), "single": len(few)},
            options,
        )
        for pool in pools:
            pool.close()
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)
    report(options, rates)
    return 0


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="checkpoint or run directory")
    parser.add_argument("--data", default="builtin:1")
    parser.add_argument("--problems", type=int, default=512, help="of `batch` and `two`")
    parser.add_argument("--few", type=int, default=16, help="of `loop` and `single`")
    parser.add_argument("--batch", type=int, default=32, help="rows of a replica")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(argv)


def measure(
    contestants: dict[str, Callable[[], Any]], few: dict[str, int], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Rollouts a second of each, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for measured in range(-1, options.rounds):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            contestant()
            seconds = time.perf_counter() - started
            if measured >= 0:
                rates[name].append(few.get(name, options.problems) / seconds)
    return rates


@torch.no_grad()
def run_loop(
    checkpoint: Checkpoint, problems: Sequence[Problem], gates: torch.Tensor, config: RLConfig
) -> list[bool]:
    """One problem after another, without a cache; gives whether each was solved."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    solved = []
    for problem, row in zip(problems, gates, strict=False):
        prompt = prompt_tokens(tokenizer, problem)
        tokens = list(prompt)
        while len(tokens) < len(prompt) + config.max_tokens:
            token = int(model(torch.tensor([tokens]), row[None])[0, -1].argmax())
            if token in tokenizer.eos_ids:
                break
            tokens.append(token)
        solved.append(score(tokenizer.decode(tokens[len(prompt) :]), problem).strict)
    return solved


def report(options: argparse.Namespace, rates: dict[str, list[float]]) -> None:
    print(f"{'':8}{'rollouts/s':>12}")
    for name in NAMES:
        print(f"{name:8}{statistics.median(rates[name]):12.2f}")
    ratios = {}
    for above, below in (("batch", "loop"), ("batch", "single"), ("two", "batch")):
        values = [a / b for a, b in zip(rates[above], rates[below], strict=True)]
        ratios[f"{above}/{below}"] = values
        low, high = quantile(values, 0.25), quantile(values, 0.75)
        middle = statistics.median(values)
        print(f"{above} / {below}: {middle:.2f} (quartiles {low:.2f} to {high:.2f})")
    facts = {"cores": os.cpu_count(), "load": os.getloadavg(), "rates": rates, "ratios": ratios}
    print(json.dumps({"options": vars(options)} | facts))


if __name__ == "__main__":
    raise SystemExit(main())
