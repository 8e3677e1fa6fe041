"""What a run says: progress lines, metrics.jsonl, TensorBoard and other trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mhc_model.errors import DataError
from mhc_model.files import parse_row, split_lines
from mhc_model.running import EVERY_S
from train.records.run_directory import RunDirectory
from train.records.trackers import Tracker

METRICS = "metrics.jsonl"
# In every row; the others come with a validation.
STEP_METRICS = {
    "loss",
    "lr_multiplier",
    "grad_norm",
    "dt",
    "tokens_per_second",
    "mfu",
    "peak_memory_gib",
}
# Left out of timing: the first steps allocate memory and compile.
UNTIMED_STEPS = 3


class MetricsLog:
    """One row a step in metrics.jsonl and the same numbers in TensorBoard; rank 0 has it."""

    def __init__(
        self, run: RunDirectory, resumed_step: int, trackers: Sequence[Tracker] = ()
    ) -> None:
        """Drops the rows after `resumed_step`: those steps are done again.

        Args:
            run: the run's directory.
            resumed_step: last step that counts as done.
            trackers: others that get every row; closed with this.
        """
        self.run = run
        self._trackers = trackers
        kept = [row.decode() for row in _lines(run) if _row_step(row) <= resumed_step]
        run.write_text(METRICS, "".join(f"{row}\n" for row in kept))
        run.work.mkdir(parents=True, exist_ok=True)
        if not run.is_local:
            (run.work / METRICS).write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")
        self._file = (run.work / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run.work / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Adds the row of one step; `row["step"]` is its number."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        scalars, texts = flatten(row)
        for name, value in scalars.items():
            self._board.add_scalar(name, value, row["step"])
        for name, text in texts.items():
            self._board.add_text(name, text, row["step"])
        for tracker in self._trackers:
            tracker.write(row["step"], scalars, texts)

    def publish(self) -> None:
        """Makes all rows so far visible where the run is stored."""
        self._board.flush()
        self.run.upload_work()

    def close(self) -> None:
        self._file.close()
        self._board.close()
        self.run.upload_work()
        for tracker in self._trackers:
            tracker.close()


def flatten(row: dict[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """A row as numbers and as texts, each under a name with its group in front."""
    scalars, texts = {}, {}
    for name, value in row.items():
        if name == "samples":
            texts = _sample_texts(value)
        elif isinstance(value, list):  # one number per sublayer
            scalars |= {f"{name}/{index:03d}": number for index, number in enumerate(value)}
        elif name != "step":
            scalars[f"{'train' if name in STEP_METRICS else 'validation'}/{name}"] = value
    return scalars, texts


def _sample_texts(samples: Sequence[dict[str, str]]) -> dict[str, str]:
    """By the number of the prompt, and the behaviour that it was continued under, if any."""
    prompts = sum("behaviour" not in sample for sample in samples)
    texts = {}
    for number, sample in enumerate(samples):
        under = f"/{sample['behaviour']}" if "behaviour" in sample else ""
        texts[f"samples/{number % prompts}{under}"] = sample["prompt"] + sample["text"]
    return texts


def read_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """All whole rows of a run, in order."""
    return [parse_row(line) for line in _lines(run) if _row_step(line) != float("inf")]


def _lines(run: RunDirectory) -> list[bytes]:
    return split_lines((run.read_text(METRICS) or "").encode())


def _row_step(row: bytes) -> float:
    """Step of a row; a row that was cut off while it was written counts as never written."""
    try:
        return parse_row(row)["step"]
    except (DataError, KeyError, TypeError):
        return float("inf")


class Progress:
    """Times the steps and makes the line that a person reads: greppable by `step `."""

    def __init__(
        self,
        first_step: int,
        last_step: int,
        tokens_per_step: int,
        tokens_per_second_at_peak: float | None = None,
    ) -> None:
        """Starts the clock.

        Args:
            first_step: the next one.
            last_step: of the run.
            tokens_per_step: of all workers.
            tokens_per_second_at_peak: what all devices would do at their peak; None where that is
                not known.
        """
        self.first_step, self.last_step = first_step, last_step
        self.tokens_per_step = tokens_per_step
        self.at_peak = tokens_per_second_at_peak
        self._started = self._said = time.monotonic()
        self._timed_steps, self._timed_seconds = 0, 0.0

    def timing(self, step: int, seconds: float) -> dict[str, float]:
        """Adds one step's duration; gives the metrics `dt`, `tokens_per_second` and `mfu`.

        There is no mfu (model FLOPs utilization) before a step is timed, or without a known peak.
        """
        if step >= self.first_step + UNTIMED_STEPS:
            self._timed_steps += 1
            self._timed_seconds += seconds
        rate = self.tokens_per_second()
        timing = {"dt": round(seconds, 5), "tokens_per_second": round(rate, 1)}
        return timing | ({"mfu": round(rate / self.at_peak, 4)} if rate and self.at_peak else {})

    def tokens_per_second(self) -> float:
        """Mean over the timed steps; 0 before there are any."""
        if self._timed_steps == 0:
            return 0.0
        return self._timed_steps * self.tokens_per_step / self._timed_seconds

    def is_due(self) -> bool:
        """Whether a line is due because steps are slow, whatever their number."""
        return time.monotonic() - self._said >= EVERY_S

    def step_line(self, row: dict[str, Any]) -> str:
        self._said = time.monotonic()
        elapsed = self._said - self._started
        line = (
            f"{self._position(row['step'])} | loss {row['loss']:.4f} | "
            f"lr x{row['lr_multiplier']:.3f} | grad {row['grad_norm']:.3f} | "
            f"dt {row['dt'] * 1000:.0f} ms"
        )
        if "peak_memory_gib" in row:
            line += f" | mem {row['peak_memory_gib']:.2f} GiB"
        rate = self.tokens_per_second()
        if rate:
            if "mfu" in row:
                line += f" | MFU {row['mfu']:.1%}"
            left = (self.last_step - row["step"]) * self.tokens_per_step / rate
            line += f" | {rate:,.0f} tok/s | elapsed {_clock(elapsed)} | ETA {_clock(left)}"
        return line

    def validation_line(self, row: dict[str, Any]) -> str:
        line = (
            f"{self._position(row['step'])} | held-out loss {row['val_loss']:.4f} | "
            f"bits per byte {row['val_bpb']:.4f}"
        )
        for name, value in row.items():
            if name.startswith("val_loss."):
                line += f" | {name.removeprefix('val_loss.')} {value:.4f}"
        if "gates" in row:
            line += (
                f" | g=0 {row['val_loss_gate_0']:.4f} | g=1 {row['val_loss_gate_1']:.4f} | "
                f"H_res moved {row['h_res_drift']:.4f} | "
                f"gates {min(row['gates']):.3f} to {max(row['gates']):.3f}"
            )
        return line

    def sample_line(self, row: dict[str, Any], sample: dict[str, str]) -> str:
        under = f"{sample['behaviour']} | " if "behaviour" in sample else ""
        position = self._position(row["step"])
        return f"{position} | {under}{sample['prompt']!r} -> {sample['text']!r}"

    def _position(self, step: int) -> str:
        return f"step {step:0{len(str(self.last_step))}d}/{self.last_step}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
