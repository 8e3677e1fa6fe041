"""One part of a corpus becomes one training shard and one of held-out documents.

Rows that say under which gates they are learned have shards of their own, one for each behaviour
and for each choice of gates: a sequence is cut out of one shard, and has gates as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.fs

from mhc_model.errors import DataError
from mhc_model.tokenizer import Tokenizer
from train.data import Document, Group, describe_group, open_directory
from train.prepare.sources import CorpusSource, Part, locate

PARTS = "parts"  # one JSON file a finished part, until the manifest is there
FLUSH_TOKENS = 1 << 20
SPLITS = ("train", "validation")
MOST_GROUPS = 64  # of one part: each has a file and a buffer


@dataclass(frozen=True)
class Job:
    """What a task needs, besides its part; picklable."""

    source: CorpusSource
    tokenizer: Tokenizer
    dtype: str
    location: str

    def write_part(self, number: int, part: Part) -> dict[str, Any]:
        """Writes the shards of a part and then its record, `parts/NUMBER.json`.

        It depends on the part only: whoever does it again writes the same bytes.

        Returns:
            The record: skipped rows; the `groups` of the rows, each with the piece of the part and
            the position where it comes first; and of each split the entries of its shards.

        Raises:
            DataError: naming the file and what is wrong.
        """
        filesystem, base = open_directory(self.location)
        config = self.source.config
        skipped = 0
        lengths = self.tokenizer.token_byte_lengths().numpy()
        with PartWriter(filesystem, base, number, self.dtype) as writer:
            for index, piece in enumerate(part):
                for document in self.source.documents([piece]):
                    if document is None:
                        skipped += 1
                        continue
                    if writer.is_full_for(document.group):
                        raise DataError(
                            f"{locate(piece, document.position)} has "
                            f"{describe_group(document.group)}, the {MOST_GROUPS + 1}th choice of "
                            f"gates in one part; allowed: {MOST_GROUPS}; round the gates, or train "
                            f"on the file with data.files"
                        )
                    ids = np.array(self._encode(document.text, part), dtype=writer.dtype)
                    held_out = document.is_held_out(config.validation_share, config.seed)
                    split = "validation" if held_out else "train"
                    writer.shard(split, document, index).add(ids, int(lengths[ids].sum()))
            record = {"skipped": skipped, **writer.finish()}
        write_file(filesystem, f"{base}/{PARTS}/{number:05d}.json", json.dumps(record).encode())
        return record

    def _encode(self, text: str, part: Part) -> list[int]:
        try:
            return self.tokenizer.encode_documents([text])[0]
        except DataError as error:
            paths = ", ".join(sorted({piece.path for piece in part}))
            raise DataError(f"a document of {paths} cannot be tokenized: {error}") from None


class PartWriter:
    """Writes the shards of a part: one for each split and group, from their first documents on."""

    def __init__(
        self, filesystem: pyarrow.fs.FileSystem, base: str, number: int, dtype: str
    ) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._filesystem, self._base, self._number = filesystem, base, number
        self._open = contextlib.ExitStack()
        self._shards: dict[tuple[str, Group | None], ShardWriter] = {}
        self._first: dict[Group, tuple[int, int]] = {}  # in the order in which they come

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)

    def is_full_for(self, group: Group | None) -> bool:
        """Whether rows of a group would be too many files."""
        return not (group is None or group in self._first) and len(self._first) == MOST_GROUPS

    def shard(self, split: str, document: Document, piece: int) -> ShardWriter:
        """Where a document goes, which is in this piece of the part."""
        group = document.group
        if group is not None:
            self._first.setdefault(group, (piece, document.position))
        if (split, group) not in self._shards:
            name = f"{split}-{self._number:05d}"
            if group is not None:
                name += f"-{1 + list(self._first).index(group)}"
            writer = ShardWriter(self._filesystem, self._base, f"{name}.bin", self.dtype.name)
            self._shards[split, group] = self._open.enter_context(writer)
        return self._shards[split, group]

    def finish(self) -> dict[str, Any]:
        """Moves the shards into place; gives their entries, those without a group first."""
        record: dict[str, Any] = {
            "groups": [[_to_json(group), *place] for group, place in self._first.items()]
        }
        for split in SPLITS:
            record[split] = []
            for group in (None, *self._first):
                if (split, group) in self._shards:
                    entry = self._shards[split, group].finish()
                    own = {} if group is None else {"group": _to_json(group)}
                    record[split].append(entry | own)
        return record


def _to_json(group: Group) -> str | list[float]:
    return group if isinstance(group, str) else list(group)


class ShardWriter:
    """Writes one shard under a temporary name, in constant memory; a context manager."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem, base: str, name: str, dtype: str) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._filesystem, self._base, self._name = filesystem, base, name
        self._temporary = temporary_name(f"{base}/{name}")
        self._buffer: list[np.ndarray] = []
        self._buffered = self._tokens = self._documents = self._bytes = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> ShardWriter:
        self._stream = self._filesystem.open_output_stream(self._temporary)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stream.close()
        if kind is not None:
            with contextlib.suppress(OSError):  # the error on the way out matters more
                self._filesystem.delete_file(self._temporary)

    def add(self, ids: np.ndarray, size: int) -> None:
        """One document: its (n,) tokens, and how many bytes of text they hold."""
        self._buffer.append(ids)
        self._buffered += len(ids)
        self._documents += 1
        self._bytes += size
        if self._buffered >= FLUSH_TOKENS:
            self._flush()

    def finish(self) -> dict[str, Any]:
        """Moves the shard into place and gives its entry."""
        self._flush()
        self._stream.close()
        self._filesystem.move(self._temporary, f"{self._base}/{self._name}")
        return {
            "file": self._name,
            "sha256": self._digest.hexdigest(),
            "tokens": self._tokens,
            "documents": self._documents,
            "bytes": self._bytes,
        }

    def _flush(self) -> None:
        if self._buffer:
            content = np.concatenate(self._buffer).tobytes()
            self._digest.update(content)
            self._stream.write(content)
        self._tokens += self._buffered
        self._buffer, self._buffered = [], 0


def temporary_name(path: str) -> str:
    """A name that no other attempt at the same file uses."""
    return f"{path}.tmp-{uuid.uuid4().hex[:12]}"


def write_file(filesystem: pyarrow.fs.FileSystem, path: str, content: bytes) -> None:
    """Writes a file under a temporary name and moves it into place."""
    temporary = temporary_name(path)
    with filesystem.open_output_stream(temporary) as stream:
        stream.write(content)
    filesystem.move(temporary, path)
