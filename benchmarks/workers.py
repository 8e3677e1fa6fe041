"""The table `workers`: what a second process and the exchange of gradients do to tokens/s."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from benchmarks.timing import WARM_UP
from mhc_model.settings import validate_settings
from mhc_model.tokenizer import Tokenizer
from train.config import TrainConfig
from train.data import Corpus
from train.loop import ProcessGroup, Trainer
from train.records import RunDirectory

# Rounds of every row, one after another; each starts processes.
ROUNDS = 3
ROWS = {"one": (1, True), "two": (2, True), "two, nothing exchanged": (2, False)}


def measure_workers(options: argparse.Namespace) -> dict[str, Any]:
    """Times the training loop's own steps on random tokens, without Ray."""
    rates: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(ROUNDS):
        for name, (size, exchange) in ROWS.items():
            rates[name].append(_tokens_per_second(options, size, exchange))
    ratios = [b / a for a, b in zip(rates["one"], rates["two"], strict=True)]
    free = zip(rates["two"], rates["two, nothing exchanged"], strict=True)
    report = {
        "tokens_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "two_over_one": statistics.median(ratios),
        "ddp_overhead": 1.0 - statistics.median(a / b for a, b in free),
        "rates": rates,
    }
    print(f"\nworkers: {options.threads} threads in all, medians of {ROUNDS} rounds")
    for name, rate in report["tokens_per_s"].items():
        print(f"{name:24}{rate:11.0f} tokens/s")
    print(
        f"two over one {report['two_over_one']:.3f}; exchanging gradients takes "
        f"{report['ddp_overhead']:.1%} of the time of two"
    )
    return report


def _tokens_per_second(options: argparse.Namespace, size: int, exchange: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="workers-") as directory:
        arguments = (options, size, exchange, directory)
        torch.multiprocessing.spawn(_work, arguments, nprocs=size)
        return float(json.loads(Path(directory, "rate.json").read_text()))


def _work(
    rank: int, options: argparse.Namespace, size: int, exchange: bool, directory: str
) -> None:
    torch.set_num_threads(max(1, options.threads // size))
    if size > 1:
        dist.init_process_group("gloo", f"file://{directory}/store", rank=rank, world_size=size)
    trainer = Trainer(
        _config(options, directory),
        _corpus(options),
        RunDirectory(directory, "workers"),
        ProcessGroup(rank, size),
    )
    quiet = nullcontext()
    if not exchange and isinstance(trainer.model, DistributedDataParallel):
        quiet = trainer.model.no_sync()
    seconds = []
    with quiet:
        for _ in range(WARM_UP + options.rounds):
            if size > 1:
                dist.barrier()
            started = time.perf_counter()
            trainer.train_step()
            seconds.append(time.perf_counter() - started)
    if rank == 0:
        rate = trainer.config.total_batch_tokens / statistics.median(seconds[WARM_UP:])
        Path(directory, "rate.json").write_text(json.dumps(rate))
    if size > 1:
        dist.destroy_process_group()


def _config(options: argparse.Namespace, directory: str) -> TrainConfig:
    values = {
        "name": "workers",
        "storage": directory,
        "steps": WARM_UP + options.rounds,
        "total_batch_tokens": 2 * options.passes * options.batch * options.tokens,
        "device_batch": options.batch,
        "workers": {"num_workers": 2},
        "model": {
            "vocab_size": options.vocab,
            "n_layers": options.layers,
            "n_heads": options.heads,
            "d_model": options.width,
            "max_seq_len": options.tokens,
        },
    }
    return validate_settings(TrainConfig, values, "workers")


def _corpus(options: argparse.Namespace) -> Corpus:
    tokens = np.random.default_rng(0).integers(options.vocab, size=1_000_000).astype(np.uint16)
    tokenizer = Tokenizer.train(["a few words"], 257)
    return Corpus(tokens, ("a text",), tokenizer, documents=1, sha256="random")
