"""Which checkpoint predicts held-out text best; it is kept whatever its age."""

from __future__ import annotations

import json
import math

from train.records.metrics import read_rows
from train.records.run_directory import RunDirectory

BEST = "best.json"


class Best:
    """The saved step with the fewest bits per byte.

    Attributes:
        step: None before there is one.
        bits_per_byte: infinite before there is one.
    """

    def __init__(self, run: RunDirectory) -> None:
        """Looks through the metrics of the steps that have a checkpoint; best.json follows."""
        self.run = run
        self.step: int | None = None
        self.bits_per_byte = math.inf
        saved = set(run.steps())
        for row in read_rows(run):
            if row["step"] in saved and row.get("val_bpb", math.inf) < self.bits_per_byte:
                self.step, self.bits_per_byte = row["step"], row["val_bpb"]
        if self.step is None:
            run.delete_file(BEST)
        else:
            self._write()

    def take(self, step: int, bits_per_byte: float) -> None:
        """Hears of a step that was evaluated and saved; best.json names the best one so far."""
        if bits_per_byte < self.bits_per_byte:
            self.step, self.bits_per_byte = step, bits_per_byte
            self._write()

    def _write(self) -> None:
        content = {"step": self.step, "val_bpb": self.bits_per_byte}
        self.run.write_text(BEST, json.dumps(content) + "\n")
