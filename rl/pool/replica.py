"""A frozen replica of the model in an actor of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ray
import torch

from mhc_model.checkpoint import find_checkpoint
from mhc_model.config import EngineKind
from mhc_model.engine import Completion, EngineBase, Request
from mhc_model.engines import load_engine
from mhc_model.errors import MHCError


def pack_checkpoint(path: str | Path) -> dict[str, bytes]:
    """The files of a checkpoint directory, to be put into the object store once.

    So replicas on other machines need no shared disk, and all hold the same bytes.
    """
    return {file.name: file.read_bytes() for file in sorted(find_checkpoint(path).iterdir())}


class Identity(NamedTuple):
    """Who a replica is: the hash of its weights, its process and the node that it is on."""

    checkpoint_hash: str | None
    pid: int
    node: str


class Report(NamedTuple):
    """What one exchange brought: samples that ended, requests that were refused, and seconds that
    the engine has worked since the replica began."""

    completions: list[Completion]
    refused: list[tuple[str, MHCError]]
    busy_s: float


class Replica:
    """What runs inside the actor; `ReplicaPool` makes it a Ray actor.

    The engine runs inside of `exchange` only, for a slice of time. The pool keeps two calls under
    way, so the next slice begins when one ends, and new requests join the running batch with it.
    """

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
        self._busy_s = 0.0
        with tempfile.TemporaryDirectory(prefix="replica-") as directory:
            for name, content in files.items():
                (Path(directory) / name).write_bytes(content)
            self._engine: EngineBase = load_engine(
                engine, directory, max_batch=max_batch, device=device
            )

    def describe(self) -> Identity:
        node = ray.get_runtime_context().get_node_id()
        return Identity(self._engine.checkpoint_hash, os.getpid(), node)

    def exchange(
        self, requests: Sequence[Request], cancelled: Sequence[str], slice_s: float
    ) -> Report:
        """Takes requests, works for a slice of time, and gives what has ended.

        Args:
            requests: join the batch as rows become free; ids are unique among those under way.
            cancelled: ids of earlier requests that nobody waits for any more.
            slice_s: seconds to work; less if everything has ended before.
        """
        started = time.perf_counter()
        engine, completions, refused = self._engine, [], []
        for identity in cancelled:
            engine.cancel(identity)
        for request in requests:
            try:
                engine.add(request)
            except MHCError as error:
                refused.append((request.id, error))
        worked = engine.has_work
        while engine.has_work:
            completions += engine.step()
            if time.perf_counter() - started >= slice_s:
                break
        if worked:
            self._busy_s += time.perf_counter() - started
        return Report(completions, refused, self._busy_s)
