"""The decoding step: one more token for every row of the batch.

The step reads and writes tensors that stay where they are (`Batch`, the cache), so that on a GPU it
can be recorded once as a CUDA graph and replayed: without, launching its kernels takes longer than
running them. A graph is of fixed shapes, hence few: rows and attended positions are rounded up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mhc_model.decoder import Decoder, KVCache
from mhc_model.engine.batch import Batch, Drawn, Wanted

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
POSITIONS = 128
# Graphs share their memory, but each holds its launches: some tens of MB for a large model.
MOST_GRAPHS = 64


class DecodeStep:
    """Runs the step, or replays it.

    Attributes:
        rounds_up: work on a few shapes only.
        records: replay CUDA graphs.
    """

    def __init__(self, model: Decoder, batch: Batch, records: bool) -> None:
        self._model = model
        self._batch = batch
        self.rounds_up = self.records = records
        self._graphs: dict[tuple[int, int, Wanted], tuple[torch.cuda.CUDAGraph, Drawn]] = {}
        self._graphs_of: KVCache | None = None
        self._pool: Any = None  # the memory that graphs share

    def __call__(self, cache: KVCache, rows: int, width: int, wanted: Wanted) -> Drawn:
        """Feeds the newest token of the first `rows` slots and draws the next.

        Slots among them that do not decode are computed along: nothing of theirs changes but what
        the next pass over them writes anew.

        Args:
            cache: of the whole batch.
            rows: slots, up to the last that is taken.
            width: positions to attend to, those of the newest tokens included.
            wanted: what the rows ask for.

        Returns:
            What was drawn, a row a slot. A replayed graph writes it anew.
        """
        if self.rounds_up:
            rows = min(next((size for size in ROWS if size >= rows), rows), cache.rows)
            width = min(-(-width // POSITIONS) * POSITIONS, cache.max_seq_len + 1)
        if not self.records:
            return self._run(cache, rows, width, wanted)
        if self._graphs_of is not cache:  # laid out anew
            self._graphs.clear()
            self._graphs_of = cache
        key = (rows, width, wanted)
        if key not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = self._record(
                lambda: self._run(cache, rows, width, wanted), cache.lengths
            )
        graph, drawn = self._graphs[key]
        graph.replay()
        return drawn

    def _run(self, cache: KVCache, rows: int, width: int, wanted: Wanted) -> Drawn:
        batch = self._batch
        part = cache.slice(0, rows, width)
        gates = None if batch.gates is None else batch.gates[:rows]
        hidden = self._model.hidden(batch.tokens[:rows, None], gates, part)
        part.lengths.add_(batch.live[:rows] - 1)  # it counted one more for each
        return batch.draw(self._model.logits(hidden[:, 0]), slice(0, rows), wanted)

    def _record(
        self, run: Callable[[], Drawn], lengths: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Drawn]:
        state = (lengths, *self._batch.state)
        before = [value.clone() for value in state]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels compile and libraries allocate at their first run
            run()
        torch.cuda.current_stream().wait_stream(aside)
        for value, old in zip(state, before, strict=True):
            value.copy_(old)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            drawn = run()
        self._pool = graph.pool()
        return graph, drawn
