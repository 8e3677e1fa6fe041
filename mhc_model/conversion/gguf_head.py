"""Whether the head of a GGUF file says what the file can hold.

The package that reads these files makes an object of every entry of an array, whose number is what
the file says it is. So its counts are compared with its size first.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from mhc_model.errors import CheckpointError
from mhc_model.files import check_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Bytes of a value by its type; text and lists come with their length.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, LIST = 8, 9
MAX_ENTRIES = 2**20  # of all lists together: twice what Llama 3 has
MAX_KEY, MAX_DIMENSIONS = 2**16 - 1, 4
LEAST_PAIR, LEAST_TENSOR = 13, 24  # bytes


def check_head(path: Path) -> None:
    """Walks through the head of a file without keeping anything of it.

    Raises:
        CheckpointError: if it is no GGUF file, or says more than it can hold.
    """
    size = check_regular(path)
    if size < 24:
        raise CheckpointError(f"{path} is not a readable GGUF file: it has {size} bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            _Walk(content, path).run()
        except struct.error:
            raise CheckpointError(f"{path} is not a readable GGUF file: its head is cut") from None


class _Walk:
    """A position in the head of a file."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self.content = content
        self.path = path
        self.at = 8
        self.entries = 0
        self.order = "<"

    def run(self) -> None:
        content = self.content
        if content[:4] != MAGIC:
            self.refuse(f"it begins with {bytes(content[:4])!r}, not {MAGIC!r}")
        [version] = struct.unpack_from("<I", content, 4)
        if not version & 0xFFFF:  # written on a machine of the other byte order
            self.order = ">"
            [version] = struct.unpack_from(">I", content, 4)
        if version not in VERSIONS:
            self.refuse(f"its version is {version}; supported: {', '.join(map(str, VERSIONS))}")
        tensors, pairs = self.number("Q"), self.number("Q")
        self.check("entries", pairs, LEAST_PAIR)
        for _ in range(pairs):
            key = self.text(MAX_KEY)
            self.value(key.decode("utf-8", "replace"))
        self.check("tensors", tensors, LEAST_TENSOR)
        for _ in range(tensors):
            self.tensor()

    def number(self, kind: str) -> int:
        [value] = struct.unpack_from(self.order + kind, self.content, self.at)
        self.at += struct.calcsize(self.order + kind)
        return int(value)

    def text(self, limit: int) -> bytes:
        length = self.number("Q")
        self.check("characters of a text", length, 1)
        if length > limit:
            self.refuse(f"a name has {length} characters")
        self.at += length
        return self.content[self.at - length : self.at]

    def value(self, key: str) -> None:
        kind = self.number("I")
        if kind == TEXT:
            self.text(len(self.content))
        elif kind == LIST:
            self.list(key)
        else:
            self.skip(self.size(kind, key))

    def list(self, key: str) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind == LIST:
            self.refuse(f"{key!r} is a list of lists, which is not supported")
        self.check(f"entries of {key!r}", count, 8 if kind == TEXT else self.size(kind, key))
        self.entries += count
        if self.entries > MAX_ENTRIES:
            self.refuse(f"its lists have more than {MAX_ENTRIES} entries")
        if kind != TEXT:
            self.skip(count * self.size(kind, key))
            return
        for _ in range(count):
            self.text(len(self.content))

    def tensor(self) -> None:
        name = self.text(MAX_KEY).decode("utf-8", "replace")
        dimensions = self.number("I")
        if dimensions > MAX_DIMENSIONS:
            self.refuse(f"{name!r} has {dimensions} dimensions; at most {MAX_DIMENSIONS}")
        shape = [self.number("Q") for _ in range(dimensions)]
        self.skip(12)  # its type, and where it begins
        # A weight takes more than a bit.
        if math.prod(shape) > 8 * len(self.content):
            self.refuse(f"{name!r} would have the shape {shape}, more than the file can hold")

    def size(self, kind: int, key: str) -> int:
        if kind not in SIZES:
            self.refuse(f"{key!r} has the unknown type {kind}")
        return SIZES[kind]

    def skip(self, count: int) -> None:
        self.check("bytes", count, 1)
        self.at += count

    def check(self, what: str, count: int, least: int) -> None:
        """Refuses a count of things that take at least so many bytes each."""
        left = len(self.content) - self.at
        if count * least > left:
            self.refuse(f"it says {count} {what}, with {left} bytes left")

    def refuse(self, why: str) -> None:
        raise CheckpointError(f"{self.path} is not a readable GGUF file: {why}")
