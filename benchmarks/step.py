"""The table `step`: a whole step of training, plain and with hyper-connections."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks.counting import saved_bytes
from benchmarks.streams import triton_available, with_eager_streams
from benchmarks.timing import interleave, print_times, summarize
from mhc_model.config import MHCConfig, ModelConfig
from mhc_model.decoder import Decoder
from mhc_model.settings import validate_settings
from train.config import OptimizerConfig
from train.loop import Objective, Optimizers

LOSS_CHUNK = 4096  # tokens, the default of the training configuration


class TrainStep:
    """A model with its optimizer, and one whole step of training on random tokens."""

    def __init__(self, options: argparse.Namespace, name: str, hidden: str = "adamw") -> None:
        self.options, self.device = options, torch.device(options.device)
        before = allocated(self.device)
        config = ModelConfig(
            vocab_size=options.vocab,
            n_layers=options.layers,
            n_heads=options.heads,
            d_model=options.width,
            max_seq_len=options.tokens,
            mhc=None if name.startswith("plain") else MHCConfig(),
        )
        self.decoder = Decoder(config).to(self.device)
        self.objective = Objective(self.decoder, LOSS_CHUNK)
        if name.endswith("-compiled"):
            self.objective.compile()
        self.optimizers = Optimizers(
            self.decoder, validate_settings(OptimizerConfig, {"hidden": hidden}, "step")
        )
        shape = (self.passes, 2, options.batch, options.tokens)
        self.data = torch.randint(options.vocab, shape, device=self.device)
        if name == "ours-eager":
            self.step = with_eager_streams(self.step)  # type: ignore[method-assign]
        self.step()  # makes the optimizer's state
        self.resident = allocated(self.device) - before

    @property
    def passes(self) -> int:
        return max(1, self.options.step_tokens // (self.options.batch * self.options.tokens))

    @property
    def tokens(self) -> int:
        return self.passes * self.options.batch * self.options.tokens

    def loss(self, part: Tensor) -> Tensor:
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.options.dtype == "bfloat16"
        ):
            loss: Tensor = self.objective(part[0], part[1])
        return loss

    def step(self) -> None:
        for part in self.data:
            (self.loss(part) / self.passes).backward()
        self.optimizers.step(1.0)

    def memory(self, others: int) -> dict[str, int]:
        """Peak of a step without what other models hold; saved bytes of a pass on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step()
            return {"peak_bytes": torch.cuda.max_memory_allocated(self.device) - others}
        parameters = list(self.decoder.parameters())
        return {"saved_bytes": saved_bytes(lambda: self.loss(self.data[0]), parameters)}


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def measure_step(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    names = ["plain", "ours"]
    if triton_available(device):
        names.append("ours-eager")
    if options.compile:
        names += ["plain-compiled", "ours-compiled"]
    names = [name for name in names if not options.only or name in options.only]
    steps = {name: TrainStep(options, name) for name in names}
    if not steps:
        print("\nstep: nothing in --only")
        return {"rows": []}
    functions = {name: step.step for name, step in steps.items()}
    rows = summarize(interleave(functions, options.rounds, device))
    first = next(iter(steps.values()))
    print(
        f"\nstep: {options.layers} x {options.width}, vocabulary {options.vocab}, {first.tokens} "
        f"tokens in {first.passes} passes of {options.batch} x {options.tokens}, "
        f"{options.rounds} rounds"
    )
    print_times(rows)
    held = sum(step.resident for step in steps.values())
    for row in rows:
        step = steps[row["name"]]
        row["tokens_per_s"] = 1e3 * step.tokens / row["median_ms"]
        row["parameters"] = step.decoder.count_parameters()
        if not row["name"].endswith("-compiled") or device.type == "cuda":
            row |= step.memory(held - step.resident)
        line = f"{row['name']:20}{row['tokens_per_s']:11.0f} tokens/s"
        for key in ("peak_bytes", "saved_bytes"):
            if key in row:
                line += f"{row[key] / 2**20:11.1f} MiB {key.removesuffix('_bytes')}"
        print(line)
    return {"rows": rows, "tokens": first.tokens, "passes": first.passes}
