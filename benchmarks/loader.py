"""The loader of prepared shards: its rate beside what the demo's models consume, and its memory.

- rate: everything runs in one process, in turn, after warm-up rounds; a ratio is the median of
  the ratios of tokens/s within a round. One worker: its loader, and its whole training steps
- `--memory`: a generated text of --megabytes is prepared by `python -m train.prepare` and read for
  an epoch. Resident memory is sampled in each quarter of the time: flat means constant
- the last line of the output is everything as one JSON object

    python -m benchmarks.loader
    python -m benchmarks.loader --memory --megabytes 1024
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

if not __package__:  # run as a file: Python looks beside it, not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import interleave, quantile, ratios_of
from mhc_model.settings import dump_settings, load_settings, validate_settings
from train.config import DataConfig, TrainConfig
from train.data import Batches, Corpus, ReadAhead, prepare_corpus
from train.launch import with_vocabulary
from train.loop import ProcessGroup, Trainer
from train.prepare import PrepareConfig, prepare
from train.records import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
LOADER_STEPS = 100  # a round; a step of a model is measured alone
WORDS = 50_000
QUARTERS = 4


def main(argv: list[str] | None = None) -> int:
    options = parse_options(argv)
    torch.set_num_threads(1)
    if options.read is not None:  # a process of its own, started below
        print(json.dumps(read_epoch(options.read)))
        return 0
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    measure = measure_memory if options.memory else measure_rate
    with tempfile.TemporaryDirectory(prefix="loader-") as directory:
        report = measure(options, Path(directory))
    print(json.dumps({"options": vars(options), **report}))
    return 0


class LoaderRun:
    """One worker's loader, going through the steps of a run."""

    def __init__(self, corpus: Corpus, context: int, batch: int, device_batch: int) -> None:
        self.batches = Batches(corpus.tokens, context, batch, seed=0)
        self.ahead = ReadAhead(self.batches, range(batch), device_batch)
        self.tokens = LOADER_STEPS * batch * context
        self._step = 0

    def read(self) -> None:
        """The passes of LOADER_STEPS steps."""
        own, size = self.ahead.own, self.ahead.device_batch
        for _ in range(LOADER_STEPS):
            self._step += 1
            for start in range(own.start, own.stop, size):
                self.ahead.sequences(self._step, start, start + size)


def measure_rate(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Tokens/s of the loader and of the demo's models."""
    write_text(directory / "text.txt", options.megabytes or 16)
    prepare(settings(options, directory, vocab_size=512))
    trainers = {
        name: build_trainer(ROOT / "configs" / f"demo_{name}.yaml", directory)
        for name in ("baseline", "mhc")
    }
    demo = trainers["mhc"].config
    corpus = trainers["mhc"].corpus
    loaders = {
        "loader": LoaderRun(corpus, demo.context, demo.batch_sequences, demo.device_batch),
        "loader, 16 x 1024": LoaderRun(corpus, 1024, 32, 16),
    }
    functions = {name: loader.read for name, loader in loaders.items()}
    functions |= {name: trainer.train_step for name, trainer in trainers.items()}
    tokens = {name: loader.tokens for name, loader in loaders.items()}
    tokens |= {name: trainer.config.total_batch_tokens for name, trainer in trainers.items()}
    times = interleave(functions, options.rounds, torch.device("cpu"))
    for loader in loaders.values():
        loader.ahead.close()
    return {"rows": print_rates({n: [1e3 * tokens[n] / ms for ms in times[n].wall] for n in times})}


def print_rates(rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    rows = []
    print(f"\n{'':24}{'tokens/s':>12}{'loader over it':>16}{'quartiles':>16}")
    for name, own in rates.items():
        ratios = ratios_of(rates["loader"], own)
        low, middle, high = (
            quantile(ratios, 0.25),
            statistics.median(ratios),
            quantile(ratios, 0.75),
        )
        rate = statistics.median(own)
        print(f"{name:24}{rate:12,.0f}{middle:16.2f}{low:10.2f}-{high:.2f}")
        rows.append(
            {"name": name, "tokens_per_s": rate, "loader_over": middle, "quartiles": [low, high]}
        )
    return rows


def build_trainer(config_file: Path, directory: Path) -> Trainer:
    """One worker of a demo configuration, on the shards."""
    values = load_settings(TrainConfig, config_file).model_dump()
    values["storage"] = str(directory / "runs")
    values["workers"]["num_workers"] = 1
    # Shards of texts: every token is learned, and no row has a behaviour.
    values |= {"loss_on": "all", "behaviours": {}}
    values["data"] = {"shards": str(directory / "shards"), "validation_documents": 1}
    config = validate_settings(TrainConfig, values, str(config_file))
    corpus = prepare_corpus(config.data)
    config = with_vocabulary(config, corpus.tokenizer.vocab_size)
    return Trainer(config, corpus, RunDirectory(config.storage, config.name), ProcessGroup())


def measure_memory(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Peak resident memory of preparation and of an epoch of reading, by quarters of the time."""
    text = directory / "text.txt"
    write_text(text, options.megabytes or 1024)
    print(f"text of {text.stat().st_size:,} bytes")
    dump_settings(settings(options, directory, options.vocabulary), directory / "prepare.yaml")
    command = [sys.executable, "-m", "train.prepare", "--config", str(directory / "prepare.yaml")]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    samples = list(sample_memory(process))
    seconds = time.monotonic() - started
    output = process.stdout.read() if process.stdout else ""
    print(output.strip())
    if process.returncode:
        raise SystemExit(f"train.prepare ended with {process.returncode}")
    prepared = {"seconds": seconds, "bytes_per_s": text.stat().st_size / seconds}
    for role in ("command", "largest task"):
        prepared[role] = quarters([sample[role] for sample in samples if sample[role]])
        print(f"prepare, {role}: peak MiB by quarter {prepared[role]}")
    read = [sys.executable, "-m", "benchmarks.loader", "--read", str(directory / "shards")]
    result = subprocess.run(read, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    loaded = json.loads(result.stdout.splitlines()[-1])
    print(
        f"loader, {loaded['tokens']:,} tokens: peak MiB by quarter {loaded['quarters']}; before "
        f"{loaded['before']}"
    )
    return {"prepare": prepared, "loader": loaded}


def sample_memory(process: subprocess.Popen[str]) -> Iterator[dict[str, float]]:
    """MiB of the command and of the largest of its Ray tasks, until it ends."""
    command = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            own = mebibytes(command)
            tasks = [
                mebibytes(child)
                for child in command.children(recursive=True)
                if "_write_part" in child.name() or "_write_part" in " ".join(child.cmdline())
            ]
        except psutil.Error:  # it has just ended
            continue
        yield {"command": own, "largest task": max(tasks, default=0.0)}
        time.sleep(0.2)


def read_epoch(shards: str) -> dict[str, Any]:
    """Reads an epoch as one worker of d12's shape does; MiB of this process."""
    process = psutil.Process()
    corpus = prepare_corpus(DataConfig(shards=shards))
    loader = LoaderRun(corpus, 1024, 32, 16)
    before = round(mebibytes(process))
    samples = []
    for _ in range(max(QUARTERS, loader.batches.blocks // (32 * LOADER_STEPS))):
        loader.read()
        samples.append(mebibytes(process))
    loader.ahead.close()
    tokens = len(samples) * loader.tokens
    return {"tokens": tokens, "before": before, "quarters": quarters(samples)}


def quarters(samples: list[float]) -> list[int]:
    """The peak of each quarter."""
    borders = [round(i * len(samples) / QUARTERS) for i in range(QUARTERS + 1)]
    parts = [samples[a : max(b, a + 1)] for a, b in itertools.pairwise(borders)]
    return [round(max(part)) for part in parts if part]


def mebibytes(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def write_text(path: Path, megabytes: int) -> None:
    """Lines of made-up words, some common and most rare, with a blank line now and then."""
    generator = np.random.default_rng(0)
    syllables = ["ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "wö", "zé", "sh", "nt"]
    words = np.array(
        ["".join(generator.choice(syllables, generator.integers(1, 5))) for _ in range(WORDS)]
    )
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 2**20:
            ranks = np.minimum(generator.zipf(1.3, 100_000) - 1, WORDS - 1)
            ends = np.where(np.arange(len(ranks)) % 120 == 119, ".\n\n", " ")
            written += file.write("".join(np.char.add(words[ranks], ends)))


def settings(options: argparse.Namespace, directory: Path, vocab_size: int) -> PrepareConfig:
    return PrepareConfig(
        source=(str(directory / "text.txt"),),
        out=str(directory / "shards"),
        tokenizer=options.tokenizer,
        vocab_size=vocab_size,
        tokenizer_bytes=16 * 2**20,
        part_bytes=int(options.part_megabytes * 2**20),
    )


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="benchmarks.loader", description=description)
    parser.add_argument("--memory", action="store_true", help="memory instead of rate")
    parser.add_argument("--megabytes", type=int, help="of text; 16, with --memory 1024")
    parser.add_argument("--part-megabytes", type=float, default=64)
    parser.add_argument("--tokenizer", default="train", help="as of train.prepare")
    parser.add_argument("--vocabulary", type=int, default=4096, help="with --memory, if trained")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
