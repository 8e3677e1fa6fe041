"""What a run says: progress lines, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from train.run_directory import RunDirectory

METRICS = "metrics.jsonl"
# In every row; the others come with a validation.
STEP_METRICS = {"loss", "lr_multiplier", "grad_norm", "dt", "tokens_per_second"}
# Left out of timing: the first steps allocate memory and compile.
UNTIMED_STEPS = 3


class MetricsLog:
    """One row a step in metrics.jsonl and the same numbers in TensorBoard; rank 0 has it."""

    def __init__(self, run: RunDirectory, resumed_step: int) -> None:
        """Drops the rows after `resumed_step`: those steps are done again."""
        self.run = run
        rows = (run.read_text(METRICS) or "").splitlines()
        kept = [row for row in rows if _row_step(row) <= resumed_step]
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
        for name, value in row.items():
            if isinstance(value, list):  # one number per sublayer
                for index, number in enumerate(value):
                    self._board.add_scalar(f"{name}/{index:03d}", number, row["step"])
            elif name != "step":
                group = "train" if name in STEP_METRICS else "validation"
                self._board.add_scalar(f"{group}/{name}", value, row["step"])

    def publish(self) -> None:
        """Makes all rows so far visible where the run is stored."""
        self._board.flush()
        self.run.upload_work()

    def close(self) -> None:
        self._file.close()
        self._board.close()
        self.run.upload_work()


def _row_step(row: str) -> float:
    """Step of a row; a row that was cut off while it was written counts as never written."""
    try:
        return json.loads(row)["step"]
    except json.JSONDecodeError:
        return float("inf")


class Progress:
    """Times the steps and makes the line that a person reads: greppable by `step `."""

    def __init__(self, first_step: int, last_step: int, tokens_per_step: int) -> None:
        self.first_step, self.last_step = first_step, last_step
        self.tokens_per_step = tokens_per_step
        self._started = time.monotonic()
        self._timed_steps, self._timed_seconds = 0, 0.0

    def timing(self, step: int, seconds: float) -> dict[str, float]:
        """Adds one step's duration; gives the metrics `dt` and `tokens_per_second`."""
        if step >= self.first_step + UNTIMED_STEPS:
            self._timed_steps += 1
            self._timed_seconds += seconds
        return {"dt": round(seconds, 5), "tokens_per_second": round(self.tokens_per_second(), 1)}

    def tokens_per_second(self) -> float:
        """Mean over the timed steps; 0 before there are any."""
        if self._timed_steps == 0:
            return 0.0
        return self._timed_steps * self.tokens_per_step / self._timed_seconds

    def step_line(self, row: dict[str, Any]) -> str:
        elapsed = time.monotonic() - self._started
        line = (
            f"{self._position(row['step'])} | loss {row['loss']:.4f} | "
            f"lr x{row['lr_multiplier']:.3f} | grad {row['grad_norm']:.3f} | "
            f"dt {row['dt'] * 1000:.0f} ms"
        )
        rate = self.tokens_per_second()
        if rate:
            left = (self.last_step - row["step"]) * self.tokens_per_step / rate
            line += f" | {rate:,.0f} tok/s | elapsed {_clock(elapsed)} | ETA {_clock(left)}"
        return line

    def validation_line(self, row: dict[str, Any]) -> str:
        line = (
            f"{self._position(row['step'])} | held-out loss {row['val_loss']:.4f} | "
            f"bits per byte {row['val_bpb']:.4f}"
        )
        if "gates" in row:
            line += (
                f" | g=0 {row['val_loss_gate_0']:.4f} | g=1 {row['val_loss_gate_1']:.4f} | "
                f"H_res moved {row['h_res_drift']:.4f} | "
                f"gates {min(row['gates']):.3f} to {max(row['gates']):.3f}"
            )
        return line

    def _position(self, step: int) -> str:
        return f"step {step:0{len(str(self.last_step))}d}/{self.last_step}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
