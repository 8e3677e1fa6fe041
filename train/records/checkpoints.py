"""What a checkpoint holds beside the model, where a run goes on, and which checkpoint is the best.

`step-000100/trainer/` has the optimizer's tensors and a few numbers, and nothing pickled. There is
no state of a random generator or of a loader to save: the data of a step and its gate noise are
functions of (seed, step).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mhc_model.checkpoint import MANIFEST, Checkpoint, load_checkpoint, save_checkpoint
from mhc_model.decoder import Decoder
from mhc_model.errors import CheckpointError
from mhc_model.files import file_sha256
from mhc_model.tokenizer import Tokenizer
from train.records.metrics import read_rows
from train.records.run_directory import RunDirectory, step_name

FORMAT = 1
BEST = "best.json"
# What a save that was cut off, or a lost file, leads to; another OSError can pass.
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Resume(NamedTuple):
    """A checkpoint that was read and verified."""

    step: int
    checkpoint: Checkpoint
    optimizer: dict[str, Tensor]


def save_step(
    directory: Path,
    step: int,
    decoder: Decoder,
    tokenizer: Tokenizer,
    optimizer: dict[str, Tensor],
    metadata: dict[str, object],
) -> None:
    """Writes `directory`/model and `directory`/trainer."""
    content_hash = save_checkpoint(
        directory / "model", decoder, tokenizer, metadata={"step": step, **metadata}
    )
    trainer = directory / "trainer"
    trainer.mkdir()
    save_file(optimizer, trainer / "state.safetensors")
    state = {
        "format": FORMAT,
        "step": step,
        "model": content_hash,
        "sha256": file_sha256(trainer / "state.safetensors"),
    }
    (trainer / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def load_step(directory: Path) -> Resume:
    """Reads and verifies what `save_step` wrote.

    Raises:
        CheckpointError: if a file is missing, truncated or altered, or model and trainer are not of
            the same step.
        OSError: if files of the model cannot be read.
    """
    if (directory / "model" / MANIFEST).exists():
        # load_checkpoint takes a manifest that cannot be read for a damaged one.
        (directory / "model" / MANIFEST).read_bytes()
    checkpoint = load_checkpoint(directory / "model")
    trainer = directory / "trainer"
    try:
        state = json.loads((trainer / "state.json").read_text(encoding="utf-8"))
        expected = (FORMAT, checkpoint.content_hash, file_sha256(trainer / "state.safetensors"))
        found = (state["format"], state["model"], state["sha256"])
        tensors = load_file(trainer / "state.safetensors")
        step = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{trainer} cannot be read: {type(error).__name__} {error}"
        ) from error
    if found != expected:
        raise CheckpointError(f"{trainer} was altered, or is not of the model beside it")
    return Resume(step, checkpoint, tensors)


def find_resume(run: RunDirectory) -> Resume | None:
    """The newest whole checkpoint of a run; says which ones are damaged.

    Returns:
        None if there is no checkpoint, or only the first one and its save was cut off.

    Raises:
        CheckpointError: if no checkpoint is whole, or if one cannot be read now for a reason that
            can pass, such as permissions or a network.
    """
    steps = run.steps()
    for step in reversed(steps):
        try:
            with run.open_step(step) as directory:
                return load_step(directory)
        except (CheckpointError, OSError) as error:
            reason = error.__cause__ or error
            if isinstance(reason, OSError) and not isinstance(reason, ABSENT):
                raise CheckpointError(
                    f"checkpoint {step_name(step)} in {run.location} cannot be read now: {error}; "
                    f"nothing was changed, try again when it can"
                ) from error
            print(f"checkpoint {step_name(step)} is damaged and not used: {error}", flush=True)
    if not steps or _is_first_save(run, steps):
        return None
    raise CheckpointError(
        f"none of the {len(steps)} checkpoints in {run.location} can be read; delete the "
        f"directory, or give another name"
    )


def _is_first_save(run: RunDirectory, steps: list[int]) -> bool:
    """Whether the run was killed before its first checkpoint was whole: no step came after it."""
    return len(steps) == 1 and all(row["step"] <= steps[0] for row in read_rows(run))


class Best:
    """The saved step with the fewest bits per byte on held-out text; it is kept whatever its age.

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
