"""What a run trains on: prepared shards; or files and built-in problems, tokenized in memory.

The driver opens the corpus once and hands it to the workers through Ray's object store. Of files
and built-in problems the workers get the tokens, so only the driver needs the files, and all
workers see the same. Of shards they get the manifest, and read them themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from evals.problems import load_problems
from evals.tasks import document
from mhc_model.checkpoint import find_checkpoint
from mhc_model.errors import CheckpointError, DataError
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig
from train.data.batches import Tokens
from train.data.documents import is_held_out, read_documents
from train.data.shards import ShardedTokens, tokenizer_sha256

# Documents whose ids exist as Python integers, which take many times the space of the array.
TOKENIZE_AT_ONCE = 4096

T = TypeVar("T")


class TokenizerChoice(Protocol):
    """A configuration with a tokenizer, `DataConfig` or that of train.prepare."""

    @property
    def tokenizer(self) -> str:
        """As `DataConfig.tokenizer`."""

    @property
    def vocab_size(self) -> int:
        """Ids wanted of a trained one."""


@dataclass(frozen=True)
class Corpus:
    """Everything that training reads.

    Attributes:
        tokens: (count,) uint16 or uint32, every document with the separator in front; or shards of
            the same.
        validation: held-out documents as text.
        tokenizer: what made the tokens.
        documents: number of training documents.
        sha256: of tokens, vocabulary and held-out documents; equal corpora have equal hashes.
    """

    tokens: Tokens
    validation: tuple[str, ...]
    tokenizer: Tokenizer
    documents: int
    sha256: str

    def describe(self) -> dict[str, int | str]:
        """What data.json in the run directory says."""
        return {
            "sha256": self.sha256,
            "tokens": len(self.tokens),
            "documents": self.documents,
            "validation_documents": len(self.validation),
            "vocab_size": self.tokenizer.vocab_size,
        }


def prepare_corpus(config: DataConfig) -> Corpus:
    """Reads, splits and tokenizes; the same configuration and files give the same corpus.

    Raises:
        DataError: if a file is missing or malformed, or nothing is left to train on or to hold out;
            or if a shard is missing, truncated or corrupt, or of another tokenizer.
        ConfigError: if the tokenizer is none of what `DataConfig.tokenizer` accepts.
    """
    if config.shards is not None:
        return _open_shards(config, config.shards)
    training, validation = _split_documents(config)
    if not training or not validation:
        raise DataError(
            f"{len(training)} training and {len(validation)} held-out documents: both need at "
            f"least one; give more data, or another data.validation_share than "
            f"{config.validation_share}"
        )
    tokenizer = choose_tokenizer(config, training)
    tokens = _tokenize(training, tokenizer)
    return Corpus(
        tokens=tokens,
        validation=tuple(validation),
        tokenizer=tokenizer,
        documents=len(training),
        sha256=fingerprint(tokens, tokenizer, validation),
    )


def _open_shards(config: DataConfig, location: str) -> Corpus:
    tokens = ShardedTokens(location, config.shards_cache)
    tokenizer = tokens.tokenizer()
    if config.tokenizer != "train":
        named = choose_tokenizer(config, ())
        if tokenizer_sha256(named) != tokens.manifest.tokenizer_sha256:
            raise DataError(
                f"the shards in {location} were made with another tokenizer than {config.tokenizer}"
                f"; prepare them with --tokenizer {config.tokenizer}, or leave out data.tokenizer"
            )
    if config.verify_shards:
        tokens.verify()
    limit = config.validation_documents
    return Corpus(
        tokens=tokens,
        validation=tokens.validation_texts(tokenizer, limit),
        tokenizer=tokenizer,
        documents=sum(entry.documents for entry in tokens.manifest.train),
        sha256=hashlib.sha256(f"{tokens.sha256} {limit}".encode()).hexdigest(),
    )


def _tokenize(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """All documents in one stream, (count,), in the smallest type that holds the vocabulary."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    parts = []
    for start in range(0, len(documents), TOKENIZE_AT_ONCE):
        rows = tokenizer.encode_documents(documents[start : start + TOKENIZE_AT_ONCE])
        parts.append(np.concatenate([np.asarray(row, dtype=dtype) for row in rows]))
    return np.concatenate(parts)


def choose_tokenizer(config: TokenizerChoice, documents: Iterable[str]) -> Tokenizer:
    """The tokenizer that a configuration names, trained on `documents`, read once, if it says so.

    Raises:
        DataError: if a file or directory does not exist, or is malformed.
        CheckpointError: if the directory has no tokenizer.
        ConfigError: if it is none of what `DataConfig.tokenizer` accepts.
    """
    if config.tokenizer == "train":
        return Tokenizer.train(documents, config.vocab_size)
    path = Path(config.tokenizer)
    if path.is_dir():
        # A tokenizer alone is no checkpoint; from_directory says so if it is neither.
        with suppress(CheckpointError):
            path = find_checkpoint(path)
        return Tokenizer.from_directory(path)
    if path.is_file():
        return Tokenizer.from_tiktoken_file(path)
    if path.suffix or "/" in config.tokenizer:
        raise DataError(f"tokenizer file or directory {config.tokenizer!r} does not exist")
    return Tokenizer.from_name(config.tokenizer)


def _split_documents(config: DataConfig) -> tuple[list[str], list[str]]:
    """Training and held-out documents."""
    training, validation = [], []
    if config.builtin_levels:
        source = "builtin:" + ",".join(map(str, config.builtin_levels))
        training += map(document, load_problems(source, "train", config.builtin_count))
        validation += map(document, load_problems(source, "test", config.validation_documents))
    documents = [text for path in config.files for text in read_documents(path)]
    if config.validation_files:
        held_out = [text for path in config.validation_files for text in read_documents(path)]
    else:
        held_out = [text for text in documents if is_held_out(text, config.validation_share)]
        documents = [text for text in documents if not is_held_out(text, config.validation_share)]
    if config.files and not held_out:
        raise DataError(
            f"none of {len(documents)} documents is held out at data.validation_share "
            f"{config.validation_share}; raise it, or give data.validation_files"
        )
    return training + documents, validation + spread(held_out, config.validation_documents)


def spread(documents: list[T], limit: int) -> list[T]:
    """At most `limit` of them, evenly over all."""
    if len(documents) <= limit:
        return documents
    return [documents[i * len(documents) // limit] for i in range(limit)]


def fingerprint(tokens: np.ndarray, tokenizer: Tokenizer, validation: Sequence[str]) -> str:
    """sha256 of everything that a run reads."""
    digest = hashlib.sha256(tokens.tobytes())
    for part in [tokenizer.rules, *validation]:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    for token in range(tokenizer.vocab_size):
        digest.update(tokenizer.token_bytes(token) + b"\0")
    return digest.hexdigest()
