"""How fast the engine generates: beside transformers' `generate`, a loop, and what gates cost.

- everything of one table runs in one process, in turn: A B C A B C ..., after warm-up rounds
- a ratio is the median of the ratios of tokens/s within a round
- `equal`: as many prompts as rows, and prompts and answers of one length; `mixed`: four times as
  many, of lengths from a quarter of it up to it. transformers takes them batch by batch
- CPU seconds are of all threads: on a busy machine, with one thread, they are the steadier figure
- `vllm-native` is vLLM's own plain Qwen3 of as many parameters, `vllm-plain` and `vllm-mhc` (mixed
  gates) are our models in vLLM; the rows are there where vLLM is installed (docs/vllm.md)
- nothing is reused: the prefix cache is off, answers have no end of document
- the last line of the output is everything as one JSON object

    python -m benchmarks.engine --batch 1,8,32,128
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: Python looks beside it, not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.generators import (
    Figures,
    Generator,
    build_model,
    draw_prompts,
    engine_generator,
    gates_of,
    transformers_generator,
)
from benchmarks.timing import quantile, ratios_of
from benchmarks.vllm_generators import HAS_VLLM, native_generator, vllm_generator

WARM_UP = 1
# Prompts of the rows that take one at a time: they do not get faster with more.
LOOP = 4


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"options": vars(options), "machine": machine(options), "tables": []}
    plain, mhc = build_model(options, plain=True), build_model(options, plain=False)
    if not HAS_VLLM:
        print("vLLM is not installed: no rows of it")
    print(f"plain {plain.count_parameters():,} parameters, mHC {mhc.count_parameters():,}")
    for batch in options.batch:
        for lengths in options.lengths:
            rows = measure(options, plain, mhc, batch, lengths == "mixed")
            print_table(batch, lengths, rows)
            report["tables"].append({"batch": batch, "lengths": lengths, "rows": rows})
    report["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of the process {report['peak_rss_mib']:.0f} MiB")
    print(json.dumps(report))
    return 0


def measure(
    options: argparse.Namespace, plain: Any, mhc: Any, batch: int, mixed: bool
) -> list[dict[str, Any]]:
    prompts = draw_prompts(options, batch * (4 if mixed else 1), mixed)
    n_gates = mhc.config.n_gates
    contestants = [
        engine_generator(options, "engine", plain, batch, [None] * len(prompts)),
        transformers_generator("transformers-batch", plain, batch),
        engine_generator(
            options, "mhc-uniform", mhc, batch, gates_of(len(prompts), n_gates, False)
        ),
        engine_generator(options, "mhc-mixed", mhc, batch, gates_of(len(prompts), n_gates, True)),
    ]
    if batch > 1:
        contestants += [
            engine_generator(options, "engine-loop", plain, 1, [None] * LOOP),
            transformers_generator("transformers-loop", plain, 1),
        ]
    if HAS_VLLM:
        contestants += vllm_contestants(options, plain, mhc, batch, len(prompts))
    contestants = [each for each in contestants if each.name in options.only]
    results: dict[str, list[Figures]] = {each.name: [] for each in contestants}
    for measured in range(-WARM_UP, options.rounds):
        for each in contestants:
            own = prompts[:LOOP] if each.name.endswith("-loop") else prompts
            figures = each.run(own)
            if measured >= 0:
                results[each.name].append(figures)
    return [summarize(each, results) for each in contestants]


def vllm_contestants(
    options: argparse.Namespace, plain: Any, mhc: Any, batch: int, prompts: int
) -> list[Generator]:
    """Those that are asked for: each takes seconds to start, compiled a minute."""
    gates = gates_of(prompts, mhc.config.n_gates, True)
    makers = {
        "vllm-native": lambda name: native_generator(options, name, batch),
        "vllm-plain": lambda name: vllm_generator(options, name, plain, batch, [None] * prompts),
        "vllm-mhc": lambda name: vllm_generator(options, name, mhc, batch, gates),
    }
    return [make(name) for name, make in makers.items() if name in options.only]


def summarize(generator: Generator, results: dict[str, list[Figures]]) -> dict[str, Any]:
    own = results[generator.name]
    speed, cpu = _speeds(own)
    row: dict[str, Any] = {
        "name": generator.name,
        "tokens_per_s": statistics.median(speed),
        "tokens_per_cpu_s": statistics.median(cpu),
        "first_token_ms": _median_ms([value for figures in own for value in figures.first_token]),
        "per_token_ms": _median_ms([value for figures in own for value in figures.per_token]),
        "kv_mib": generator.memory / 2**20,
        "tokens_per_s_by_round": speed,
    }
    for name, others in results.items():
        if name != generator.name:
            their_speed, their_cpu = _speeds(others)
            ratios = ratios_of(speed, their_speed)
            low, high = quantile(ratios, 0.25), quantile(ratios, 0.75)
            by_cpu = statistics.median(ratios_of(cpu, their_cpu))
            row[f"over_{name}"] = [statistics.median(ratios), low, high, by_cpu]
    return row


def _speeds(rounds: Sequence[Figures]) -> tuple[list[float], list[float]]:
    """Tokens per second and per CPU second of each round."""
    return [r.tokens / r.seconds for r in rounds], [r.tokens / r.cpu for r in rounds]


def _median_ms(values: Sequence[float]) -> float | None:
    return 1e3 * statistics.median(values) if values else None


def print_table(batch: int, lengths: str, rows: list[dict[str, Any]]) -> None:
    print(f"\nbatch {batch}, {lengths} lengths")
    print(f"{'':20}{'tokens/s':>10}{'first ms':>10}{'token ms':>10}{'KV MiB':>8}  engine's ratio")
    for row in rows:
        line = f"{row['name']:20}{row['tokens_per_s']:10.0f}"
        for key in ("first_token_ms", "per_token_ms"):
            line += f"{'-':>10}" if row[key] is None else f"{row[key]:10.2f}"
        line += f"{row['kv_mib']:8.0f}" if row["kv_mib"] else f"{'-':>8}"
        base = next((each for each in rows if each["name"] == "engine"), None)
        if base is not None and row is not base:
            median, low, high, cpu = base[f"over_{row['name']}"]
            line += f"  {median:.2f} ({low:.2f}-{high:.2f}), by CPU time {cpu:.2f}"
        print(line)
    mixed = next((row for row in rows if row["name"] == "mhc-mixed"), None)
    if mixed is not None and "over_mhc-uniform" in mixed:
        median, low, high, cpu = mixed["over_mhc-uniform"]
        print(
            f"mixed gates over uniform ones: {median:.3f} ({low:.3f}-{high:.3f}) of the tokens/s, "
            f"by CPU time {cpu:.3f}"
        )


def machine(options: argparse.Namespace) -> dict[str, Any]:
    cpu = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    import transformers

    facts = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
    }
    print("; ".join(f"{name} {value}" for name, value in facts.items() if value is not None))
    return facts


NAMES = (
    "engine",
    "transformers-batch",
    "mhc-uniform",
    "mhc-mixed",
    "engine-loop",
    "transformers-loop",
    "vllm-native",
    "vllm-plain",
    "vllm-mhc",
)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="benchmarks.engine", description=description)

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    def words(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--batch", type=numbers, default=[1, 8, 32, 128], help="batch sizes")
    parser.add_argument("--lengths", type=words, default=["equal", "mixed"])
    parser.add_argument("--only", type=words, default=list(NAMES), help=f"of {','.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64, help="longest prompt, tokens")
    parser.add_argument("--generate", type=int, default=64, help="longest answer, tokens")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--cuda-graphs", action="store_true", help="record the decoding step")
    parser.add_argument("--vllm-compiled", action="store_true", help="compile the models in vLLM")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
