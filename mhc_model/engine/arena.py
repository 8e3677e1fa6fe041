"""Room for the keys and values of running requests, within a budget of bytes."""

from __future__ import annotations

import torch

from mhc_model.config import ModelConfig
from mhc_model.decoder import KVCache
from mhc_model.errors import EngineError


class KVArena:
    """A fixed number of positions, laid out as rows that are as long as the requests need.

    Attributes:
        cache: the rows as they are laid out now.
        positions: how many there are, the spare one of each row included.
        max_seq_len: longest row that there can be.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_rows: int,
        max_seq_len: int | None,
        budget: int | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Allocates.

        Args:
            config: the model's.
            max_rows: most rows, however short they are.
            max_seq_len: longest row; None is the model's context.
            budget: bytes; None is enough for max_rows of max_seq_len.
            device: of the storage.
            dtype: of the storage.

        Raises:
            EngineError: if max_seq_len is outside the context, or the budget holds no token.
        """
        limit = config.max_seq_len if max_seq_len is None else max_seq_len
        if not 1 <= limit <= config.max_seq_len:
            raise EngineError(
                f"max_seq_len {limit} is outside the model's context of 1 to {config.max_seq_len}"
            )
        self._max_rows = max_rows
        self.positions = max_rows * (limit + 1)
        if budget is not None:
            size = KVCache.bytes_per_token(config, dtype)
            self.positions = min(self.positions, budget // size)
            if self.positions < 2:
                raise EngineError(
                    f"kv_cache_bytes is {budget}; a token takes {size}, and a row holds one more "
                    f"than its longest sequence: give at least {2 * size}"
                )
        self.max_seq_len = min(limit, self.positions - 1)
        # Halves, so that rows are at most twice as long as needed and seldom laid out anew.
        self._limits = [self.max_seq_len]
        while self._limits[0] > 32 and self._rows_of(self._limits[0]) < max_rows:
            self._limits.insert(0, -(-self._limits[0] // 2))
        shape = (config.n_layers, self.positions, config.kv_heads, config.head_dim)
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros_like(self._keys)
        self.cache = self._laid_out(self.max_seq_len)

    def limit_of(self, need: int) -> int:
        """The length of row at which a sequence of `need` positions is held."""
        return next(limit for limit in self._limits if limit >= need)

    def fits(self, limit: int, rows: int) -> bool:
        """Whether so many rows of that length can be laid out."""
        return rows <= self._rows_of(limit)

    def serves(self, limit: int, rows: int) -> bool:
        """Whether so many rows of that length are there now."""
        return limit <= self.cache.max_seq_len and rows <= self.cache.rows

    def lay_out(self, limit: int, kept: int) -> None:
        """Makes rows of `limit` positions; the first `kept` rows keep what they hold."""
        before = self.cache
        used = int(before.lengths[:kept].max()) if kept else 0
        held = [storage[:, :kept, :used].clone() for storage in (before.keys, before.values)]
        self.cache = self._laid_out(limit)
        self.cache.keys[:, :kept, :used], self.cache.values[:, :kept, :used] = held
        self.cache.lengths[:kept] = before.lengths[:kept]

    def _rows_of(self, limit: int) -> int:
        return min(self._max_rows, self.positions // (limit + 1))

    def _laid_out(self, limit: int) -> KVCache:
        rows = self._rows_of(limit)
        keys, values = (
            storage[:, : rows * (limit + 1)].unflatten(1, (rows, limit + 1))
            for storage in (self._keys, self._values)
        )
        return KVCache(keys, values, torch.zeros(rows, dtype=torch.int64, device=keys.device))
