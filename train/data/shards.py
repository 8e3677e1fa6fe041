"""A prepared corpus: a directory of token files that `python -m train.prepare` writes.

    manifest.json         every shard with its hash and its counts; written last
    tokenizer/            what made the tokens
    token_bytes.npy       (vocab_size,) uint16 UTF-8 bytes of each token, 0 for special tokens
    train-00000.bin       tokens, little-endian uint16 or uint32, one document after another
    validation-00000.bin  the same of held-out documents
    train-00000-1.bin     rows of the same part that have gates of their own: a shard for each group

Shards are read at positions (pread), not mapped: the page cache serves both alike, but a file that
is truncated under a run then gives an error with its name where a mapping kills the process, and
resident memory stays what it is however much has been read.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.fs

from mhc_model.errors import DataError
from mhc_model.tokenizer import Tokenizer
from train.data.groups import NO_GROUP, Group, RowGroup
from train.data.manifest import (
    BEGUN,
    BYTE_TABLE,
    MANIFEST,
    TOKENIZER,
    ShardEntry,
    byte_table,
    open_directory,
    parse_manifest,
    tokenizer_sha256,
)
from train.data.shard_cache import fill_cache

OPEN_FILES = 128
CHUNK = 1 << 20


class ShardedTokens:
    """The training tokens of a prepared corpus; picklable, opens files where it is used.

    Attributes:
        manifest: as read.
        sha256: of manifest.json, and so of every shard.
        lengths: (shards,) int64 tokens of each training shard.
        groups: of the rows, in the order of their first rows.
        shard_groups: (shards,) int64 group of each training shard, -1 of none.
    """

    def __init__(
        self,
        location: str,
        cache: str | None = None,
        filesystem: pyarrow.fs.FileSystem | None = None,
    ) -> None:
        """Reads and checks the manifest, and that every shard has its size.

        Args:
            location: absolute directory, or a URI; with `filesystem`, a path in it.
            cache: local directory for copies of shards that are not on a disk of this machine; None
                is one of this user's in the directory for temporary files.
            filesystem: None finds it by `location`.

        Raises:
            ConfigError: if there is no file system for the URI.
            DataError: naming the file that is missing, malformed or of the wrong size.
        """
        self.location, self._cache = location, cache
        self.filesystem, self.path = (
            open_directory(location) if filesystem is None else (filesystem, location.rstrip("/"))
        )
        self.is_local = isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)
        content = self._read_manifest()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.manifest = parse_manifest(content, f"{location}/{MANIFEST}")
        self.dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        self.lengths = np.array([entry.tokens for entry in self.manifest.train], dtype=np.int64)
        self.groups = self._find_groups()
        self._numbers = {found.group: number for number, found in enumerate(self.groups)}
        self.shard_groups = np.array(
            [self._number(entry) for entry in self.manifest.train], dtype=np.int64
        )
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, newest last
        self._check_sizes()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    def __del__(self) -> None:
        if "_files" in self.__dict__:  # not if the constructor refused the directory
            self.close()

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def read(self, shard: int, start: int, count: int) -> np.ndarray:
        """(count,) tokens of a training shard from `start`. For one thread at a time.

        Raises:
            DataError: naming the shard, if it has become shorter.
        """
        size = count * self.dtype.itemsize
        data = os.pread(self._descriptor(shard), size, start * self.dtype.itemsize)
        if len(data) < size:
            name = f"{self.location}/{self.manifest.train[shard].file}"
            raise DataError(f"shard {name} was truncated while it was in use; restore the file")
        return np.frombuffer(data, self.dtype)

    def close(self) -> None:
        """Closes the files; `read` opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens.

        Raises:
            DataError: if it, or its byte table, is not what the manifest says.
        """
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as copy:
            source = f"{self.path}/{TOKENIZER}"
            try:
                pyarrow.fs.copy_files(source, copy, source_filesystem=self.filesystem)
            except OSError as error:
                raise DataError(f"{self.location}/{TOKENIZER} cannot be read: {error}") from None
            tokenizer = Tokenizer.from_directory(copy)
        if tokenizer_sha256(tokenizer) != self.manifest.tokenizer_sha256:
            raise DataError(f"{self.location}/{TOKENIZER} is not the one that made the shards")
        table = self._read(BYTE_TABLE)
        expected = self.manifest.byte_table_sha256
        if hashlib.sha256(table).hexdigest() != expected or table != byte_table(tokenizer):
            raise DataError(f"{self.location}/{BYTE_TABLE} does not belong to the tokenizer")
        return tokenizer

    def verify(self) -> None:
        """Hashes all training shards of a local directory; copies of others are hashed when made.

        Raises:
            DataError: naming the shard that has other content.
        """
        for entry in self.manifest.train if self.is_local else ():
            with self.filesystem.open_input_stream(f"{self.path}/{entry.file}") as stream:
                self._check_hash(entry, _sha256(_chunks(stream)))

    def validation_texts(self, tokenizer: Tokenizer, limit: int) -> tuple[str, ...]:
        """At most `limit` held-out documents, evenly over all of them.

        Raises:
            DataError: naming the shard that cannot be read or has other content.
        """
        texts: list[str] = []
        for entry, own in self._chosen(limit):
            content = self._read(entry.file)
            self._check_hash(entry, hashlib.sha256(content).hexdigest())
            tokens = np.frombuffer(content, self.dtype)
            texts += _decode(tokens, tokenizer, own, f"{self.location}/{entry.file}")
        return tuple(texts)

    def validation_groups(self, limit: int) -> tuple[int, ...]:
        """Group of each of `validation_texts`, -1 of none; nothing where no row has a group."""
        if not self.groups:
            return ()
        return tuple(self._number(entry) for entry, own in self._chosen(limit) for _ in own)

    def _chosen(self, limit: int) -> Iterator[tuple[ShardEntry, list[int]]]:
        """Shards of held-out documents with the numbers of those that are evaluated."""
        count = sum(entry.documents for entry in self.manifest.validation)
        wanted = range(count) if count <= limit else [i * count // limit for i in range(limit)]
        first = 0
        for entry in self.manifest.validation:
            own = [index - first for index in wanted if 0 <= index - first < entry.documents]
            first += entry.documents
            if own:
                yield entry, own

    def _find_groups(self) -> tuple[RowGroup, ...]:
        rows: dict[Group, int] = {found.group: 0 for found in self.manifest.groups}
        for entry in self.manifest.train:
            if entry.group is not None:
                rows[entry.group] += entry.documents
        where = {found.group: found.first for found in self.manifest.groups}
        return tuple(
            RowGroup(group, count, f"{where[group]} (now shards in {self.location})")
            for group, count in rows.items()
        )

    def _number(self, entry: ShardEntry) -> int:
        return NO_GROUP if entry.group is None else self._numbers[entry.group]

    @cached_property
    def directory(self) -> Path:
        """Where the training shards are on this machine; copies them first if they are not.

        Raises:
            DataError: naming the shard whose content in the bucket is not the manifest's, or the
                directory for copies that others may write to.
        """
        if self.is_local:
            return Path(self.path)
        base = None if self._cache is None else Path(self._cache)
        return fill_cache(
            base, self.sha256[:16], self.manifest.train, self._chunks_of, self._check_hash
        )

    def _chunks_of(self, entry: ShardEntry) -> Iterator[bytes]:
        with self.filesystem.open_input_stream(f"{self.path}/{entry.file}") as stream:
            yield from _chunks(stream)

    def _descriptor(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        name = self.manifest.train[shard].file
        try:
            descriptor = os.open(self.directory / name, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"shard {self.location}/{name} cannot be read: {error}") from None
        self._files[shard] = descriptor
        return descriptor

    def _read(self, file: str) -> bytes:
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{file}") as stream:
                return stream.read()
        except OSError as error:
            raise DataError(f"{self.location}/{file} cannot be read: {error}") from None

    def _read_manifest(self) -> bytes:
        files = [f"{self.path}/{name}" for name in (MANIFEST, BEGUN)]
        manifest, begun = (
            info.type == pyarrow.fs.FileType.File for info in self.filesystem.get_file_info(files)
        )
        if not manifest and begun:
            raise DataError(
                f"{self.location} is not prepared to the end; run python -m train.prepare again "
                f"with the same options"
            )
        if not manifest:
            raise DataError(
                f"{self.location} has no {MANIFEST}; write shards with python -m train.prepare "
                f"--out {self.location}"
            )
        return self._read(MANIFEST)

    def _check_sizes(self) -> None:
        entries = [*self.manifest.train, *self.manifest.validation]
        paths = [f"{self.path}/{entry.file}" for entry in entries]
        for entry, info in zip(entries, self.filesystem.get_file_info(paths), strict=True):
            expected = entry.tokens * self.dtype.itemsize
            name = f"shard {self.location}/{entry.file}"
            if info.type != pyarrow.fs.FileType.File:
                raise DataError(f"{name} is missing; restore it, or prepare the corpus again")
            if info.size != expected:
                raise DataError(
                    f"{name} has {info.size} bytes, the manifest says {expected}: it is truncated "
                    f"or altered; restore it, or prepare the corpus again"
                )

    def _check_hash(self, entry: ShardEntry, found: str) -> None:
        if found != entry.sha256:
            raise DataError(
                f"shard {self.location}/{entry.file} is corrupt: its sha256 is {found[:16]}..., "
                f"the manifest says {entry.sha256[:16]}...; restore it, or prepare the corpus again"
            )


def _decode(
    tokens: np.ndarray, tokenizer: Tokenizer, wanted: list[int], name: str
) -> Iterator[str]:
    """Texts of some documents of a shard, by their number."""
    # Text never gives the border tokens. Documents end with one (or have the same at both ends), or
    # only begin with one.
    example = tokenizer.encode_documents(["a"])[0]
    if example[-1] == tokenizer.eos_id:
        each = example.count(tokenizer.eos_id)
        ends = np.flatnonzero(tokens == tokenizer.eos_id)[each - 1 :: each] + 1
        starts = np.concatenate([[0], ends[:-1]])
    else:
        starts = np.flatnonzero(tokens == example[0])
        ends = np.concatenate([starts[1:], [len(tokens)]])
    for number in wanted:
        if number >= len(starts):
            raise DataError(f"shard {name} has {len(starts)} documents, fewer than it should")
        yield tokenizer.decode(tokens[starts[number] : ends[number]].tolist())


def _chunks(stream: pyarrow.NativeFile) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


def _sha256(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
