"""An engine in this process where a pool is expected: no Ray cluster, no restarts."""

from __future__ import annotations

from collections.abc import Sequence

from mhc_model.engine import Engine, Request
from rl.pool.pool import Result


class LocalPool:
    """What `Asker` needs of a pool."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """As `ReplicaPool.run`."""
        return [Result(completion, 0, 1) for completion in self.engine.generate(requests)]
