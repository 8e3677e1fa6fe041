"""An engine in the place of a pool."""

from __future__ import annotations

from mhc_model import Engine
from rl.pool import LocalPool


class CountingPool(LocalPool):
    """Counts the calls."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.calls: list[int] = []

    def run(self, requests):
        self.calls.append(len(requests))
        return super().run(requests)
