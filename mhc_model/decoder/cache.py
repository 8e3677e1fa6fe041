"""Key-value cache: preallocated rows, each with its own length.

Axes: l layer, r row, s position, h key-value head, d head dim. Positions come before heads: a row's
beginning is then one block per layer, to copy or to keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mhc_model.config import ModelConfig
from mhc_model.errors import EngineError


class KVCache:
    """Keys and values of `rows` sequences of up to `max_seq_len` tokens.

    The model writes the tokens it is given at positions `lengths .. lengths + t` of each row and
    then adds t to `lengths`. A caller that padded its rows on the right sets `lengths` back to the
    true values; what lies beyond a row's length is never attended to and is overwritten. Padding
    past the last position goes to a spare one.
    Keys and values depend on the gates that made them: a row belongs to one gate vector.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        lengths: Tensor,
        index: Tensor | None = None,
        width: int | None = None,
    ) -> None:
        """Wraps storage.

        Args:
            keys: (l, r, s + 1, h, d); the last position is the spare one.
            values: as keys.
            lengths: int64, one a row.
            index: which rows of the storage these are; None means all.
            width: positions attended to, at least the longest row with the tokens to come; None
                asks `lengths`, which waits for a GPU.
        """
        self.keys = keys
        self.values = values
        self.lengths = lengths
        self.index = index
        self.width = width

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        rows: int,
        max_seq_len: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """Zeroed storage for `rows` sequences; `max_seq_len` defaults to the model's."""
        limit = config.max_seq_len if max_seq_len is None else max_seq_len
        if not 1 <= limit <= config.max_seq_len:
            raise EngineError(
                f"cache length {limit} is outside the model's context of 1 to {config.max_seq_len}"
            )
        shape = (config.n_layers, rows, limit + 1, config.kv_heads, config.head_dim)
        keys = torch.zeros(shape, device=device, dtype=dtype)
        lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        return cls(keys, torch.zeros_like(keys), lengths)

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """Bytes that one position of one row takes over all layers."""
        return 2 * config.n_layers * config.kv_heads * config.head_dim * dtype.itemsize

    @property
    def max_seq_len(self) -> int:
        return self.keys.shape[2] - 1

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def slice(self, start: int, stop: int, width: int | None = None) -> KVCache:
        """A view of the rows start .. stop: writes and lengths go through to this cache."""
        keys, values = self.keys[:, start:stop], self.values[:, start:stop]
        return KVCache(keys, values, self.lengths[start:stop], width=width)

    def select(self, index: Tensor, width: int | None = None) -> KVCache:
        """The rows of `index` (int64), in that order: keys and values are written through to this
        cache, lengths are a copy. Reading copies the rows, so `slice` is faster where it serves.
        """
        return KVCache(self.keys, self.values, self.lengths[index], index, width)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of row `source` over row `target`."""
        for storage in (self.keys, self.values):
            storage[:, target, :length] = storage[:, source, :length]
        self.lengths[target] = length

    def attended(self, t: int) -> int:
        """How many positions the rows look at once they have t more tokens: `width`, if given.

        Raises:
            EngineError: if they do not fit.
        """
        if self.width is not None:
            return self.width
        last = int(self.lengths.max()) + t
        if last > self.max_seq_len:
            raise EngineError(
                f"sequence of {last} tokens exceeds the cache's {self.max_seq_len} positions"
            )
        return last

    def positions(self, t: int) -> Tensor:
        """(r, t) int64 positions of the next t tokens of each row; the spare one past the end."""
        ahead = torch.arange(t, device=self.lengths.device)
        return (self.lengths[:, None] + ahead).clamp_(max=self.max_seq_len)

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k and v (r, h, t, d) at `positions` (r, t)."""
        rows = self.index
        if rows is None:
            rows = torch.arange(self.rows, device=positions.device)
        for storage, new in ((self.keys[layer], k), (self.values[layer], v)):
            storage[rows[:, None], positions] = new.transpose(1, 2).to(storage.dtype)

    def read(self, layer: int, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values (r, h, s, d) of the first `width` positions; a view without `index`."""
        both = [storage[layer, :, :width] for storage in (self.keys, self.values)]
        if self.index is not None:
            both = [storage[self.index] for storage in both]
        return both[0].transpose(1, 2), both[1].transpose(1, 2)
