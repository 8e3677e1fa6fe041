"""What a directory of shards says of itself: manifest.json, and the hashes in it."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.fs
from pydantic import Field, model_validator

from mhc_model.errors import ConfigError, DataError
from mhc_model.settings import Settings, validate_settings
from mhc_model.tokenizer import Tokenizer
from train.data.groups import Group

FORMAT = 1
MANIFEST, BEGUN, BYTE_TABLE, TOKENIZER = (
    "manifest.json",
    "plan.json",
    "token_bytes.npy",
    "tokenizer",
)


class ShardEntry(Settings):
    """One file of tokens."""

    file: str = Field(pattern=r"^[a-z]+-\d+(-\d+)?\.bin$", description="name in the directory")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the file")
    tokens: int = Field(ge=1, description="tokens, separators included")
    documents: int = Field(ge=1, description="documents")
    bytes: int = Field(ge=0, description="UTF-8 bytes of the documents")
    group: Group | None = Field(
        None, description="behaviour or gates of all its rows; none where they say nothing"
    )


class FirstRow(Settings):
    """Where the first row of a group is."""

    group: Group = Field(description="behaviour, or gates as the rows give them")
    first: str = Field(description="file and line")


class Manifest(Settings):
    """manifest.json."""

    format: Literal[1] = Field(description="version of the layout")
    dtype: Literal["uint16", "uint32"] = Field(description="of the tokens, little-endian")
    vocab_size: int = Field(ge=1, description="of the tokenizer")
    tokenizer_sha256: str = Field(description="of the tokenizer; see `tokenizer_sha256`")
    byte_table_sha256: str = Field(description="of token_bytes.npy")
    skipped: int = Field(ge=0, description="rows of the sources that had no text")
    settings: dict[str, Any] = Field(description="what was prepared, and how")
    groups: tuple[FirstRow, ...] = Field(
        (), description="behaviours and gates that rows have, in the order of their first rows"
    )
    train: tuple[ShardEntry, ...] = Field(description="training shards, in order")
    validation: tuple[ShardEntry, ...] = Field(description="shards of held-out documents, in order")

    @model_validator(mode="after")
    def _check_groups(self) -> Manifest:
        known = {None, *(found.group for found in self.groups)}
        for entry in (*self.train, *self.validation):
            if entry.group not in known:
                raise ValueError(f"{entry.file} has the group {entry.group!r}, which groups lacks")
        return self


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


def parse_manifest(content: bytes, name: str) -> Manifest:
    """The manifest that a file of this name holds.

    Raises:
        DataError: if it is malformed.
    """
    try:
        return validate_settings(Manifest, json.loads(content), name)
    except (ConfigError, ValueError) as error:
        raise DataError(f"{name} is malformed: {error}") from None
