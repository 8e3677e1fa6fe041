"""Key-value cache: preallocated rows, each with its own length.

Axes: l layer, r row, h key-value head, s position, d head dim.
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
    true values; what lies beyond a row's length is never attended to and is overwritten.
    Keys and values depend on the gates that made them: a row belongs to one gate vector.
    """

    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
        """Wraps storage: keys and values (l, r, h, s, d), lengths (r,) int64 on the CPU."""
        self.keys = keys
        self.values = values
        self.lengths = lengths

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
        shape = (config.n_layers, rows, config.kv_heads, limit, config.head_dim)
        keys = torch.zeros(shape, device=device, dtype=dtype)
        return cls(keys, torch.zeros_like(keys), torch.zeros(rows, dtype=torch.int64))

    @property
    def max_seq_len(self) -> int:
        return self.keys.shape[3]

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    def slice(self, start: int, stop: int) -> KVCache:
        """A view of the rows start .. stop: writes go through to this cache."""
        return KVCache(
            self.keys[:, start:stop], self.values[:, start:stop], self.lengths[start:stop]
        )

    def copy_row(self, source: int, target: int) -> None:
        """Copies row `source` over row `target`, only as far as it is filled."""
        filled = int(self.lengths[source])
        self.keys[:, target, :, :filled] = self.keys[:, source, :, :filled]
        self.values[:, target, :, :filled] = self.values[:, source, :, :filled]
        self.lengths[target] = filled

    def positions(self, t: int) -> Tensor:
        """(r, t) int64 positions of the next t tokens of each row.

        Raises:
            EngineError: if they do not fit.
        """
        last = int(self.lengths.max()) + t
        if last > self.max_seq_len:
            raise EngineError(
                f"sequence of {last} tokens exceeds the cache's {self.max_seq_len} positions"
            )
        return self.lengths[:, None] + torch.arange(t)

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v (r, h, t, d) at `positions` (r, t); returns all that may be attended to.

        Returns:
            Keys and values (r, h, s, d), s the largest position written plus one.
        """
        rows = torch.arange(self.rows, device=positions.device)[:, None]
        # Advanced indices on the row and position axes put them first: (r, t, h, d).
        self.keys[layer][rows, :, positions] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][rows, :, positions] = v.transpose(1, 2).to(self.values.dtype)
        end = int(self.lengths.max()) + k.shape[2]
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
