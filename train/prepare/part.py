"""One part of a corpus becomes one training shard and one of held-out documents."""

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
from train.data import is_held_out, open_directory
from train.prepare.sources import CorpusSource, Part

PARTS = "parts"  # one JSON file a finished part, until the manifest is there
FLUSH_TOKENS = 1 << 20
SPLITS = ("train", "validation")


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
            The record: skipped rows, and for each split that has documents the entry of its shard.

        Raises:
            DataError: naming the file and what is wrong.
        """
        filesystem, base = open_directory(self.location)
        config = self.source.config
        skipped = 0
        with (
            ShardWriter(filesystem, base, f"train-{number:05d}.bin", self.dtype) as train,
            ShardWriter(filesystem, base, f"validation-{number:05d}.bin", self.dtype) as held_out,
        ):
            lengths = self.tokenizer.token_byte_lengths().numpy()
            for text in self.source.documents(part):
                if text is None:
                    skipped += 1
                    continue
                ids = np.array(self._encode(text, part), dtype=train.dtype)
                side = is_held_out(text, config.validation_share, config.seed)
                (held_out if side else train).add(ids, int(lengths[ids].sum()))
            shards = {"train": train.finish(), "validation": held_out.finish()}
        record = {"skipped": skipped, **{k: v for k, v in shards.items() if v is not None}}
        write_file(filesystem, f"{base}/{PARTS}/{number:05d}.json", json.dumps(record).encode())
        return record

    def _encode(self, text: str, part: Part) -> list[int]:
        try:
            return self.tokenizer.encode_documents([text])[0]
        except DataError as error:
            paths = ", ".join(sorted({piece.path for piece in part}))
            raise DataError(f"a document of {paths} cannot be tokenized: {error}") from None


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

    def finish(self) -> dict[str, Any] | None:
        """Moves the shard into place and gives its entry; removes one without documents."""
        self._flush()
        self._stream.close()
        if not self._documents:
            self._filesystem.delete_file(self._temporary)
            return None
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
