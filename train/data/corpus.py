"""What a run trains on: prepared shards; or files and built-in problems, tokenized in memory.

The driver opens the corpus once and hands it to the workers through Ray's object store. Of files
and built-in problems the workers get the tokens, so only the driver needs the files, and all
workers see the same. Of shards they get the manifest, and read them themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from evals.tasks import document
from mhc_model.checkpoint import find_checkpoint
from mhc_model.config import Behaviour
from mhc_model.errors import CheckpointError, DataError
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig
from train.data.batches import GroupedTokens, Tokens
from train.data.builtin import WHERE, builtin_problems
from train.data.documents import Document, line_at, read_documents
from train.data.groups import NO_GROUP, Group, RowGroup, Words
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
        groups: what rows say of their gates, each with the number of its training rows.
        validation_groups: group of each held-out document, its place in `groups` or -1; empty where
            no row has one.
    """

    tokens: Tokens
    validation: tuple[str, ...]
    tokenizer: Tokenizer
    documents: int
    sha256: str
    groups: tuple[RowGroup, ...] = ()
    validation_groups: tuple[int, ...] = ()

    def describe(self) -> dict[str, Any]:
        """What data.json in the run directory says."""
        groups = [{"group": group, "rows": rows} for group, rows, _ in self.groups]
        return {
            "sha256": self.sha256,
            "tokens": len(self.tokens),
            "documents": self.documents,
            "validation_documents": len(self.validation),
            "vocab_size": self.tokenizer.vocab_size,
            **({"groups": groups} if groups else {}),
        }


def prepare_corpus(config: DataConfig, behaviours: Mapping[str, Behaviour] = {}) -> Corpus:
    """Reads, splits and tokenizes; the same configuration and files give the same corpus.

    Args:
        config: the sources.
        behaviours: those of the model, whose styles built-in problems are answered in. Whether the
            names in rows are among them is checked by `check_groups`, but for names that become
            words.

    Raises:
        DataError: if a file is missing or malformed, or nothing is left to train on or to hold out;
            or if a shard is missing, truncated or corrupt, or of another tokenizer.
        ConfigError: if the tokenizer is none of what `DataConfig.tokenizer` accepts.
    """
    if config.shards is not None:
        return _open_shards(config, config.shards)
    training, validation, first = _split_documents(config, behaviours)
    if not training or not validation:
        raise DataError(
            f"{len(training)} training and {len(validation)} held-out documents: both need at "
            f"least one; give more data, or another data.validation_share than "
            f"{config.validation_share}"
        )
    tokenizer = choose_tokenizer(config, [found.text for found in training])
    texts = tuple(found.text for found in validation)
    groups, sides = number_groups(
        first, [found.group for found in training], [found.group for found in validation]
    )
    tokens = _tokenize_by_group([found.text for found in training], sides[0], tokenizer)
    return Corpus(
        tokens=tokens,
        validation=texts,
        tokenizer=tokenizer,
        documents=len(training),
        sha256=fingerprint(tokens, tokenizer, texts, groups, sides),
        groups=groups,
        validation_groups=tuple(sides[1].tolist()) if groups else (),
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
        groups=tokens.groups,
        validation_groups=tokens.validation_groups(limit),
    )


def number_groups(
    first: Mapping[Group, str], training: Sequence[Group | None], held_out: Sequence[Group | None]
) -> tuple[tuple[RowGroup, ...], tuple[np.ndarray, np.ndarray]]:
    """The groups of rows, and the place of each row's among them.

    Args:
        first: every group, with file and line of its first row.
        training: of each training row.
        held_out: of each held-out row.

    Returns:
        The groups, and (rows,) int64 places of training and held-out rows, -1 of none.
    """
    counts = Counter(training)
    groups = tuple(RowGroup(group, counts[group], where) for group, where in first.items())
    places: dict[Group | None, int] = {found.group: i for i, found in enumerate(groups)}
    places[None] = NO_GROUP
    training_places, held_out_places = (
        np.array([places[group] for group in side], dtype=np.int64) for side in (training, held_out)
    )
    return groups, (training_places, held_out_places)


def _tokenize_by_group(
    documents: Sequence[str], groups: np.ndarray, tokenizer: Tokenizer
) -> np.ndarray | GroupedTokens:
    """One stream of tokens, or one for each group that is there, those of none first."""
    present = np.unique(groups)
    if present.tolist() == [NO_GROUP]:
        return _tokenize(documents, tokenizer)
    return GroupedTokens(
        tuple(
            _tokenize([documents[i] for i in np.flatnonzero(groups == group)], tokenizer)
            for group in present
        ),
        present,
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


def _split_documents(
    config: DataConfig, behaviours: Mapping[str, Behaviour]
) -> tuple[list[Document], list[Document], dict[Group, str]]:
    """Training and held-out documents; and every group with its first row."""
    first: dict[Group, str] = {}
    training, validation = (
        [
            Document(document(asked.problem), asked.group, asked.question)
            for asked in builtin_problems(config, behaviours, split)
        ]
        for split in ("train", "test")
    )
    for found in (*training, *validation):
        if found.group is not None:
            first.setdefault(found.group, WHERE)
    words = tuple(behaviours) if config.style_words else None
    documents = _read_files(config.files, words, first)
    if config.validation_files:
        held_out = _read_files(config.validation_files, words, first)
    else:
        share = config.validation_share
        held_out = [found for found in documents if found.is_held_out(share)]
        documents = [found for found in documents if not found.is_held_out(share)]
    if config.files and not held_out:
        raise DataError(
            f"none of {len(documents)} documents is held out at data.validation_share "
            f"{config.validation_share}; raise it, or give data.validation_files"
        )
    return training + documents, validation + spread(held_out, config.validation_documents), first


def _read_files(paths: Iterable[str], words: Words, first: dict[Group, str]) -> list[Document]:
    documents = []
    for path in paths:
        for found in read_documents(path, words=words):
            if found.group is not None and found.group not in first:
                first[found.group] = line_at(path, found.position)
            documents.append(found)
    return documents


def spread(documents: list[T], limit: int) -> list[T]:
    """At most `limit` of them, evenly over all."""
    if len(documents) <= limit:
        return documents
    return [documents[i * len(documents) // limit] for i in range(limit)]


def fingerprint(
    tokens: np.ndarray | GroupedTokens,
    tokenizer: Tokenizer,
    validation: Sequence[str],
    groups: Sequence[RowGroup] = (),
    places: Iterable[np.ndarray] = (),
) -> str:
    """sha256 of everything that a run reads.

    Args:
        tokens: of training.
        tokenizer: what made them.
        validation: held-out documents.
        groups: of the rows.
        places: of each row among the groups.
    """
    digest = hashlib.sha256()
    for part in (tokens,) if isinstance(tokens, np.ndarray) else tokens.shards:
        digest.update(part.tobytes())
    for text in [tokenizer.rules, *validation]:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    for token in range(tokenizer.vocab_size):
        digest.update(tokenizer.token_bytes(token) + b"\0")
    if groups:
        digest.update(json.dumps([found.group for found in groups]).encode())
        for rows in places:
            digest.update(rows.tobytes())
    return digest.hexdigest()
