"""Several engines for one evaluation: Ray actors, each with its share of the items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from evals.tasks import Item, run_items
from mhc_model.engine import Completion, Engine, Request
from mhc_model.errors import EngineError
from mhc_model.running import doing, ray_cluster
from mhc_model.settings import RaySettings


class EngineActor:
    """One engine in its own process."""

    def __init__(self, checkpoint: str, max_batch: int, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.engine = Engine.from_checkpoint(checkpoint, max_batch, device=device)

    def checkpoint_hash(self) -> str | None:
        return self.engine.checkpoint_hash

    def run(
        self, work: Sequence[tuple[str, tuple[Request, ...]]]
    ) -> Iterator[tuple[str, list[Completion]]]:
        """Yields the completions of each item, by its id, as they end."""
        items = [Item(identity, requests, lambda completions: {}) for identity, requests in work]
        for item, completions in run_items(self.engine, items):
            yield item.id, completions


class Replicas:
    """N engines of one checkpoint; a context manager that stops them.

    The items are dealt out in turn; each replica streams back what it finishes. A replica that
    dies ends the evaluation: what is finished is kept, and the same command goes on there.
    """

    def __init__(
        self,
        checkpoint: str,
        count: int,
        max_batch: int,
        device: str,
        ray_settings: RaySettings,
        checkpoint_hash: str | None,
    ) -> None:
        """Starts the replicas.

        Raises:
            EngineError: if one of them has other weights.
        """
        arguments = ray_settings.init_arguments()  # before Ray is imported
        import ray

        self._ray = ray
        self._open = ExitStack()
        self._open.enter_context(ray_cluster(ray, arguments))
        self._actors: list[Any] = []
        try:
            with doing(f"starting {count} replicas"):
                self._start(checkpoint, count, max_batch, device, checkpoint_hash)
        except BaseException:
            self.close()
            raise

    def _start(
        self, checkpoint: str, count: int, max_batch: int, device: str, checkpoint_hash: str | None
    ) -> None:
        ray, gpus = self._ray, 1 if device.startswith("cuda") else 0
        actor = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus)(EngineActor)
        self._actors += [
            actor.remote(checkpoint, max_batch, "cuda" if gpus else device, 1) for _ in range(count)
        ]
        hashes = ray.get([one.checkpoint_hash.remote() for one in self._actors])
        if set(hashes) != {checkpoint_hash}:
            raise EngineError(
                f"replicas loaded {', '.join(sorted(set(map(str, hashes))))} from {checkpoint}, "
                f"expected {checkpoint_hash}; each machine must see the same checkpoint"
            )

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, list[Completion]]]:
        """As `evals.tasks.run_items`.

        Raises:
            EngineError: if a replica dies.
        """
        ray = self._ray
        owners = {item.id: item for item in items}
        work = [(item.id, item.requests) for item in items]
        streams = [
            actor.run.options(num_returns="streaming").remote(work[start :: len(self._actors)])
            for start, actor in enumerate(self._actors)
        ]
        try:
            while streams:
                ready, _ = ray.wait(streams, num_returns=1)
                try:
                    reference = next(ready[0])
                except StopIteration:
                    streams.remove(ready[0])
                    continue
                identity, completions = ray.get(reference)
                yield owners[identity], completions
        except ray.exceptions.RayActorError as error:
            raise EngineError(
                f"a replica died ({error}); the same command again goes on with what is finished"
            ) from error

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._open.close()

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
