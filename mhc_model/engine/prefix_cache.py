"""Keys and values of prompts' beginnings, kept for requests that begin in the same way.

Keys and values depend on the tokens before them and on the gates: each block is named by a digest
of its gates, of the name of the block before it and of its own tokens. So a name stands for a whole
beginning under one gate vector, and equal names mean equal keys and values.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from mhc_model.decoder import KVCache
from mhc_model.gates import gates_hash

BLOCK = 16  # tokens


def block_names(prompt: Sequence[int], gates: Tensor | None) -> list[bytes]:
    """Names of the whole blocks of a prompt under these gates (2L,), or of a plain model."""
    name = b"" if gates is None else gates_hash(gates).encode()
    names = []
    for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
        block = array("q", prompt[start : start + BLOCK]).tobytes()
        name = hashlib.blake2b(name + block, digest_size=32).digest()
        names.append(name)
    return names


class PrefixCache:
    """Blocks up to a number of bytes; the least recently used ones make room."""

    def __init__(self, capacity: int) -> None:
        """Starts empty; `capacity` in bytes, 0 keeps nothing."""
        self.capacity = capacity
        self.size = 0
        self._blocks: OrderedDict[bytes, tuple[Tensor, Tensor]] = OrderedDict()

    def match(self, names: Sequence[bytes]) -> int:
        """How many of a prompt's first blocks are here."""
        count = 0
        while count < len(names) and names[count] in self._blocks:
            count += 1
        return count

    def load(self, names: Sequence[bytes], cache: KVCache, row: int) -> None:
        """Copies blocks that are here into the first positions of a row."""
        for position, name in enumerate(names):
            keys, values = self._blocks[name]
            span = slice(position * BLOCK, (position + 1) * BLOCK)
            cache.keys[:, row, span] = keys
            cache.values[:, row, span] = values
        self._touch(names)

    def store(self, names: Sequence[bytes], cache: KVCache, row: int) -> None:
        """Keeps the blocks of a row whose first positions hold them; those that fit, in order."""
        size = 2 * cache.keys[:, 0, :BLOCK].nbytes
        names = names[: self.capacity // size]
        self._touch(names[: self.match(names)])
        for position, name in enumerate(names):
            if name in self._blocks:
                continue
            while self.size + size > self.capacity:
                self._blocks.popitem(last=False)
                self.size -= size
            span = slice(position * BLOCK, (position + 1) * BLOCK)
            pair = (cache.keys[:, row, span].clone(), cache.values[:, row, span].clone())
            self._blocks[name] = pair
            self.size += size
        self._touch(names)

    def clear(self) -> None:
        """Forgets everything, as is needed after a change of the weights."""
        self._blocks.clear()
        self.size = 0

    def _touch(self, names: Sequence[bytes]) -> None:
        # The beginning last: a block is of no use without those before it, so they outlive it.
        for name in reversed(names):
            self._blocks.move_to_end(name)
