"""A frozen replica of the model in an actor of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mhc_model.checkpoint import find_checkpoint
from mhc_model.engines import EngineKind, load_engine
from mhc_model.request import Completion, Request


def pack_checkpoint(path: str | Path) -> dict[str, bytes]:
    """The files of a checkpoint directory, to be put into the object store once.

    So replicas on other machines need no shared disk, and all hold the same bytes.
    """
    return {file.name: file.read_bytes() for file in sorted(find_checkpoint(path).iterdir())}


class Replica:
    """What runs inside the actor; `ReplicaPool` makes it a Ray actor."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        max_batch: int,
        threads: int,
        device: str,
        engine: EngineKind = "torch",
    ) -> None:
        """Loads the model from the packed checkpoint, which verifies every file's hash.

        Args:
            files: see `pack_checkpoint`.
            max_batch: rows of the engine.
            threads: torch threads; more replicas than cores would otherwise fight for them.
            device: "cpu" or "cuda"; Ray shows the actor only the GPUs that are its own.
            engine: what decodes; see `load_engine`.
        """
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory(prefix="replica-") as directory:
            for name, content in files.items():
                (Path(directory) / name).write_bytes(content)
            self._engine = load_engine(engine, directory, max_batch=max_batch, device=device)

    def describe(self) -> tuple[str | None, int]:
        """Content hash of the loaded checkpoint, and the process id."""
        return self._engine.checkpoint_hash, os.getpid()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Runs requests to their end; see `EngineBase.generate`."""
        return self._engine.generate(requests)
