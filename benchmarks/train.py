"""How fast training is: tokens/s of baseline and mHC, beside nanochat's, and by workers.

- `step`: whole steps (forward, loss, backward, Muon and AdamW), all models of it in one process in
  turn; tokens/s, the ratio to our baseline within a round, MFU where the device's peak is known
- `workers`: one process with all threads, and two that share them and exchange gradients (DDP over
  gloo), in turn; besides, two that exchange none, which is what DDP costs
- the last line of the output is everything as one JSON object

`python -m benchmarks.loader` times the data loader.

    python -m benchmarks.train
    python -m benchmarks.train --what step --nanochat DIR     # a checkout, or its .git directory
    python -m benchmarks.train --device cuda --nanochat DIR   # d12 in bfloat16, compiled
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: Python looks beside it, not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.mhc import machine_facts
from benchmarks.nanochat import FEATURES, NanochatStep, load_nanochat
from benchmarks.step import TrainStep
from benchmarks.timing import WARM_UP, interleave, print_times, summarize
from benchmarks.workers import measure_workers
from train.loop import device_peak_tflops

WHAT = ("step", "workers")


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.train", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--what", default=None, help="of step,workers (default: both, on cuda step)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--nanochat", help="directory of nanochat's repository, for its rows of `step`")
    add("--layers", type=int, help="(default: 4, on cuda 12)")
    add("--width", type=int, help="(default: 256, on cuda 768)")
    add("--heads", type=int, help="(default: 2, on cuda 6)")
    add("--vocab", type=int, help="(default: 4096, on cuda 50304)")
    add("--tokens", type=int, help="of a sequence (default: 256, on cuda 1024)")
    add("--batch", type=int, help="sequences in a pass (default: 4, on cuda 32)")
    add("--passes", type=int, default=2, help="forward and backward passes of a step")
    add("--dtype", choices=("float32", "bfloat16"), help="(default: float32, on cuda bfloat16)")
    add("--compile", action=argparse.BooleanOptionalAction, help="(default: on cuda)")
    add("--peak-tflops", type=float, help="of the device, for MFU, where it is not known")
    add("--rounds", type=int, default=10, help=f"measured rounds, after {WARM_UP} others")
    add("--threads", type=int, help="of a CPU, for all that runs at once (default: torch's)")
    options = parser.parse_args(argv)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    usual = {
        "what": "step" if cuda else ",".join(WHAT),
        "layers": 12 if cuda else 4,
        "width": 768 if cuda else 256,
        "heads": 6 if cuda else 2,
        "vocab": 50304 if cuda else 4096,
        "tokens": 1024 if cuda else 256,
        "batch": 32 if cuda else 4,
        "dtype": "bfloat16" if cuda else "float32",
        "compile": cuda,
        "threads": torch.get_num_threads(),
    }
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.what = options.what.split(",")
    unknown = set(options.what) - set(WHAT)
    if unknown:
        parser.error(f"--what {min(unknown)!r}: allowed are {', '.join(WHAT)}")
    return options


def measure_step(options: argparse.Namespace) -> dict[str, Any]:
    """The table `step`."""
    options.step_tokens = options.passes * options.batch * options.tokens
    suffix = "-compiled" if options.compile else ""
    steps: dict[str, Any] = {}
    for row, name in (("plain", "plain"), ("mhc", "ours")):
        steps[row] = TrainStep(options, name + suffix, hidden="muon")
    if options.nanochat:
        gpt = load_nanochat(options.nanochat, options.dtype)
        steps["nanochat"] = NanochatStep(options, gpt, value_embeddings=True)
        steps["nanochat-small"] = NanochatStep(options, gpt, value_embeddings=False)
    device = torch.device(options.device)
    rows = summarize(
        interleave({name: s.step for name, s in steps.items()}, options.rounds, device)
    )
    print(
        f"\nstep: {options.layers} x {options.width}, {options.heads} heads, vocabulary "
        f"{options.vocab}, {options.step_tokens} tokens in {options.passes} passes of "
        f"{options.batch} x {options.tokens}, {options.rounds} rounds"
    )
    print_times(rows)
    peak = options.peak_tflops or device_peak_tflops(device, options.dtype)
    for row in rows:
        step = steps[row["name"]]
        nanochat = isinstance(step, NanochatStep)
        flops = step.flops if nanochat else step.decoder.estimate_flops()
        row["parameters"] = step.parameters if nanochat else step.decoder.count_parameters()
        row["tokens_per_s"] = 1e3 * options.step_tokens / row["median_ms"]
        row["mfu"] = peak and row["tokens_per_s"] * flops / (peak * 1e12)
        mfu = f"{row['mfu']:8.1%} MFU" if peak else ""
        print(
            f"{row['name']:20}{row['tokens_per_s']:11.0f} tokens/s{mfu}  "
            f"{row['parameters']:,} parameters"
        )
    if options.nanochat:
        for name, features in zip(("nanochat", "nanochat-small"), FEATURES, strict=True):
            print(f"{name} has, and ours has not: {features}")
    return {"rows": rows, "tokens": options.step_tokens}


def main(argv: list[str] | None = None) -> None:
    options = parse_options(argv)
    torch.set_num_threads(options.threads)
    facts = machine_facts()
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    print(
        f"{gpu or facts['cpu']}, {facts['cores']} cores, {options.threads} threads, load "
        f"{facts['load']:.2f}; torch {torch.__version__}; {options.dtype}"
        + (", compiled" if options.compile else "")
    )
    measures = {"step": measure_step, "workers": measure_workers}
    report = {what: measures[what](options) for what in options.what}
    print(json.dumps({"options": vars(options), "machine": facts | {"gpu": gpu}, **report}))


if __name__ == "__main__":
    main()
