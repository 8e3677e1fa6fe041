"""Which tokens belong to which step: a pure function, so that resuming needs no replay.

The token stream is cut into blocks of `context` inputs, each with the token that follows. An epoch
visits every block once, in an order drawn from (seed, epoch). Step s takes the next `batch` blocks
of the endless sequence of epochs, whatever the number of workers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mhc_model.errors import DataError


class Batches:
    """The batches of all steps, by step number."""

    def __init__(self, tokens: np.ndarray, context: int, batch: int, seed: int) -> None:
        """Cuts the stream.

        Args:
            tokens: (count,) unsigned integers.
            context: tokens of a sequence.
            batch: sequences of a step, all workers together.
            seed: of the order.

        Raises:
            DataError: if the corpus is smaller than one step.
        """
        self.tokens = tokens
        self.context = context
        self.batch = batch
        self.blocks = (len(tokens) - 1) // context
        if self.blocks < batch:
            raise DataError(
                f"the corpus has {len(tokens)} tokens, {max(self.blocks, 0)} sequences of "
                f"{context}, but one step takes {batch} sequences ({batch * context} tokens); give "
                f"more data or lower total_batch_tokens"
            )
        # A step touches two epochs at most.
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(self.blocks)
        )

    def block_ids(self, step: int, start: int, stop: int) -> np.ndarray:
        """Blocks of the sequences start .. stop of step 1, 2, ...; (stop - start,) int64."""
        first = (step - 1) * self.batch
        positions = np.arange(first + start, first + stop)
        epochs, places = np.divmod(positions, self.blocks)
        ids = np.empty_like(positions)
        for epoch in np.unique(epochs):
            ids[epochs == epoch] = self._order(int(epoch))[places[epochs == epoch]]
        return ids

    def sequences(self, step: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the sequences start .. stop of a step, each (b, t) int64."""
        starts = self.block_ids(step, start, stop) * self.context
        rows = self.tokens[starts[:, None] + np.arange(self.context + 1)].astype(np.int64)
        block = torch.from_numpy(rows)
        return block[:, :-1], block[:, 1:]
