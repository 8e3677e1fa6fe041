"""What hyper-connections cost: ours, the plain residual and other implementations, side by side.

- everything of one table runs in one process, in turn: A B C A B C ..., after warm-up rounds
- a ratio is the median of the ratios within a round, so that slow drifts of a machine cancel
- all contestants have the same attention and mlp with the same weights
- the last line of the output is everything as one JSON object

    python -m benchmarks.mhc --what pair,step
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: Python looks beside it, not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_kernels import measure_kernels
from benchmarks.pair import measure_pair
from benchmarks.step import measure_step
from benchmarks.timing import WARM_UP
from mhc_model.config import MHCConfig

ENVIRONMENT = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
PEERS = ("hyper-connections", "liger-kernel")


def installed_version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def machine_facts() -> dict[str, Any]:
    """The processor, how busy it is, and torch."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of the last minute: other programs change the ratios
        "torch": torch.__version__,
    }


def machine(options: argparse.Namespace) -> dict[str, Any]:
    facts = machine_facts() | {
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "peers": {name: installed_version(name) for name in PEERS},
    }
    place = facts["gpu"] or f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads"
    place += f", load {facts['load']:.2f}"
    print(
        f"{place}; torch {torch.__version__}; {options.dtype}; b = {options.batch}, "
        f"t = {options.tokens}, c = {options.width}, n = {MHCConfig().n_streams}, "
        f"{options.heads} heads"
    )
    print("; ".join(f"{name} {value or 'not set'}" for name, value in facts["environment"].items()))
    return facts


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.mhc", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--tokens", type=int, default=1024, help="length of a sequence")
    add("--width", type=int, default=768, help="channels of a stream")
    add("--heads", type=int, default=6)
    add("--batch", type=int, help="sequences in a pass (default: 1, on cuda 32)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--rounds", type=int, default=15, help=f"measured rounds, after {WARM_UP} others")
    add("--compile", action="store_true", help="also compiled by torch.compile")
    add("--what", help="of pair,step,kernels (default: pair,step, on cuda all)")
    add("--only", help="names of contestants, separated by commas")
    add("--layers", type=int, help="of `step` (default: 2, on cuda 12)")
    add("--vocab", type=int, help="of `step` (default: 4096, on cuda 50257)")
    add("--step-tokens", type=int, help="of one step (default: one pass, on cuda 65536)")
    options = parser.parse_args(argv)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    usual = {
        "batch": 32 if cuda else 1,
        "what": "pair,step,kernels" if cuda else "pair,step",
        "layers": 12 if cuda else 2,
        "vocab": 50257 if cuda else 4096,
        "step_tokens": 65536 if cuda else 0,
    }
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.what = options.what.split(",")
    options.only = options.only.split(",") if options.only else None
    unknown = set(options.what) - {"pair", "step", "kernels"}
    if unknown:
        parser.error(f"--what {min(unknown)!r}: allowed are pair, step, kernels")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse_options(argv)
    report: dict[str, Any] = {"options": vars(options), "machine": machine(options)}
    measures = {"pair": measure_pair, "step": measure_step, "kernels": measure_kernels}
    for what in options.what:
        report[what] = measures[what](options)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
