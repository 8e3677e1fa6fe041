"""A prepared corpus: a directory of token files that `python -m train.prepare` writes.

    manifest.json         every shard with its hash and its counts; written last
    tokenizer/            what made the tokens
    token_bytes.npy       (vocab_size,) uint16 UTF-8 bytes of each token, 0 for special tokens
    train-00000.bin       tokens, little-endian uint16 or uint32, one document after another
    validation-00000.bin  the same of held-out documents

Shards are read at positions (pread), not mapped: the page cache serves both alike, but a file that
is truncated under a run then gives an error with its name where a mapping kills the process, and
resident memory stays what it is however much has been read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.fs
from pydantic import Field

from mhc_model.errors import ConfigError, DataError
from mhc_model.files import locked_directory
from mhc_model.settings import Settings, validate_settings
from mhc_model.tokenizer import Tokenizer

FORMAT = 1
MANIFEST, BEGUN, BYTE_TABLE, TOKENIZER = (
    "manifest.json",
    "plan.json",
    "token_bytes.npy",
    "tokenizer",
)
OPEN_FILES = 128
CHUNK = 1 << 20


class ShardEntry(Settings):
    """One file of tokens."""

    file: str = Field(pattern=r"^[a-z]+-\d+\.bin$", description="name in the directory")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the file")
    tokens: int = Field(ge=1, description="tokens, separators included")
    documents: int = Field(ge=1, description="documents")
    bytes: int = Field(ge=0, description="UTF-8 bytes of the documents")


class Manifest(Settings):
    """manifest.json."""

    format: Literal[1] = Field(description="version of the layout")
    dtype: Literal["uint16", "uint32"] = Field(description="of the tokens, little-endian")
    vocab_size: int = Field(ge=1, description="of the tokenizer")
    tokenizer_sha256: str = Field(description="of the tokenizer; see `tokenizer_sha256`")
    byte_table_sha256: str = Field(description="of token_bytes.npy")
    skipped: int = Field(ge=0, description="rows of the sources that had no text")
    settings: dict[str, Any] = Field(description="what was prepared, and how")
    train: tuple[ShardEntry, ...] = Field(description="training shards, in order")
    validation: tuple[ShardEntry, ...] = Field(description="shards of held-out documents, in order")


def open_directory(location: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of an absolute directory or a URI, and the path in it.

    Raises:
        ConfigError: if there is no file system for the URI.
    """
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{location!r} cannot be used: {error}") from None
    return filesystem, path.rstrip("/")


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Hash of what decides the ids of a text: rules, special tokens, bytes of every token."""
    digest = hashlib.sha256(tokenizer.rules.encode())
    special = json.dumps([tokenizer.bos_id, tokenizer.eos_ids, dict(tokenizer.special_tokens)])
    digest.update(special.encode() + b"\0")
    for token in range(tokenizer.vocab_size):
        content = tokenizer.token_bytes(token)
        digest.update(b"%d:" % len(content) + content)
    return digest.hexdigest()


def byte_table(tokenizer: Tokenizer) -> bytes:
    """Content of token_bytes.npy.

    Raises:
        DataError: if a token is longer than uint16 can say.
    """
    lengths = tokenizer.token_byte_lengths().numpy()
    if lengths.max() >= 2**16:
        raise DataError(f"a token of {lengths.max()} bytes does not fit the byte table")
    stream = io.BytesIO()
    np.save(stream, lengths.astype("<u2"))
    return stream.getvalue()


class ShardedTokens:
    """The training tokens of a prepared corpus; picklable, opens files where it is used.

    Attributes:
        manifest: as read.
        sha256: of manifest.json, and so of every shard.
        lengths: (shards,) int64 tokens of each training shard.
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
                is one in the directory for temporary files.
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
        self.manifest = _parse_manifest(content, f"{location}/{MANIFEST}")
        self.dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        self.lengths = np.array([entry.tokens for entry in self.manifest.train], dtype=np.int64)
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
        count = sum(entry.documents for entry in self.manifest.validation)
        wanted = range(count) if count <= limit else [i * count // limit for i in range(limit)]
        texts: list[str] = []
        first = 0
        for entry in self.manifest.validation:
            own = [index - first for index in wanted if 0 <= index - first < entry.documents]
            first += entry.documents
            if own:
                content = self._read(entry.file)
                self._check_hash(entry, hashlib.sha256(content).hexdigest())
                tokens = np.frombuffer(content, self.dtype)
                texts += _decode(tokens, tokenizer, own, f"{self.location}/{entry.file}")
        return tuple(texts)

    @cached_property
    def directory(self) -> Path:
        """Where the training shards are on this machine; copies them first if they are not.

        Raises:
            DataError: naming the shard whose copy has other content.
        """
        if self.is_local:
            return Path(self.path)
        base = Path(tempfile.gettempdir(), "mhc-shards") if self._cache is None else self._cache
        directory = Path(base, self.sha256[:16])
        # All workers of a machine ask at once; one copies.
        with locked_directory(directory, taken=None):
            for entry in self.manifest.train:
                target = directory / entry.file
                size = entry.tokens * self.dtype.itemsize
                if not target.exists() or target.stat().st_size != size:
                    self._copy(entry, target)
        return directory

    def _copy(self, entry: ShardEntry, target: Path) -> None:
        temporary = target.with_suffix(".tmp")
        digest = hashlib.sha256()
        with (
            self.filesystem.open_input_stream(f"{self.path}/{entry.file}") as stream,
            temporary.open("wb") as file,
        ):
            for chunk in _chunks(stream):
                digest.update(chunk)
                file.write(chunk)
        self._check_hash(entry, digest.hexdigest())
        temporary.replace(target)

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


def _parse_manifest(content: bytes, name: str) -> Manifest:
    try:
        return validate_settings(Manifest, json.loads(content), name)
    except (ConfigError, ValueError) as error:
        raise DataError(f"{name} is malformed: {error}") from None


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
