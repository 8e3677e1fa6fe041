"""Documents: read from files or made by the built-in generator, split, tokenized, packed.

The driver prepares the corpus once and hands it to the workers through Ray's object store, so the
files need to be readable by the driver only, and all workers see the same tokens.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.problem import Problem
from evals.tasks import document, load_problems
from mhc_model.checkpoint import find_checkpoint
from mhc_model.errors import CheckpointError, DataError
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig

# A text file is cut at blank lines into documents of at least this size. Several contexts long, so
# that little is lost, and short enough that a share of one book can be held out.
TEXT_DOCUMENT_CHARACTERS = 8192
# Documents whose ids exist as Python integers, which take many times the space of the array.
TOKENIZE_AT_ONCE = 4096


@dataclass(frozen=True)
class Corpus:
    """Everything that training reads.

    Attributes:
        tokens: (count,) uint16 or uint32; every document with the separator in front.
        validation: held-out documents as text.
        tokenizer: what made the tokens.
        documents: number of training documents.
        sha256: of tokens, vocabulary and held-out documents; equal corpora have equal hashes.
    """

    tokens: np.ndarray
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
        DataError: if a file is missing or malformed, or nothing is left to train on or to hold out.
        ConfigError: if the tokenizer is none of what `DataConfig.tokenizer` accepts.
    """
    training, validation = _split_documents(config)
    if not training or not validation:
        raise DataError(
            f"{len(training)} training and {len(validation)} held-out documents: both need at "
            f"least one; give more data, or another data.validation_share than "
            f"{config.validation_share}"
        )
    tokenizer = load_tokenizer(config, training)
    tokens = _tokenize(training, tokenizer)
    return Corpus(
        tokens=tokens,
        validation=tuple(validation),
        tokenizer=tokenizer,
        documents=len(training),
        sha256=_fingerprint(tokens, tokenizer, validation),
    )


def _tokenize(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """All documents in one stream, (count,), in the smallest type that holds the vocabulary."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    parts = []
    for start in range(0, len(documents), TOKENIZE_AT_ONCE):
        rows = tokenizer.encode_documents(documents[start : start + TOKENIZE_AT_ONCE])
        parts.append(np.concatenate([np.asarray(row, dtype=dtype) for row in rows]))
    return np.concatenate(parts)


def load_tokenizer(config: DataConfig, documents: Sequence[str]) -> Tokenizer:
    """The tokenizer that the configuration names, trained on `documents` if it says so."""
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
        held_out = [text for text in documents if _is_held_out(text, config.validation_share)]
        documents = [text for text in documents if not _is_held_out(text, config.validation_share)]
    if config.files and not held_out:
        raise DataError(
            f"none of {len(documents)} documents is held out at data.validation_share "
            f"{config.validation_share}; raise it, or give data.validation_files"
        )
    return training + documents, validation + _spread(held_out, config.validation_documents)


def _is_held_out(text: str, share: float) -> bool:
    """Decided by the text itself: copies of a document are on the same side."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _spread(documents: list[str], limit: int) -> list[str]:
    """At most `limit` documents, evenly over all of them."""
    if len(documents) <= limit:
        return documents
    return [documents[i * len(documents) // limit] for i in range(limit)]


def read_documents(path: str) -> Iterator[str]:
    """Documents of a text or JSON-lines file, plain or .gz.

    Raises:
        DataError: naming the file, the line and what is wrong.
    """
    name = path.removesuffix(".gz")
    count = 0
    for text in _read_json_lines(path) if name.endswith(".jsonl") else _read_text(path):
        count += 1
        yield text
    if count == 0:
        raise DataError(f"{path} is empty")


def _read_lines(path: str) -> Iterator[str]:
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:  # gzip raises the first two
        raise DataError(f"{path} cannot be read: {error}") from None


def _read_text(path: str) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for line in _read_lines(path):
        lines.append(line)
        size += len(line)
        if size >= TEXT_DOCUMENT_CHARACTERS and not line.strip():
            yield "".join(lines)
            lines, size = [], 0
    rest = "".join(lines)
    if rest.strip():
        yield rest


def _read_json_lines(path: str) -> Iterator[str]:
    for number, line in enumerate(_read_lines(path), start=1):
        if line.strip():
            yield _row_text(line, f"{path} line {number}")


def _row_text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg}): {line[:80]!r}") from None
    values = [row.get(key) for key in ("text", "question", "answer")] if type(row) is dict else []
    match values:
        case [str(text), _, _] if text.strip():
            return text
        case [_, str(question), str(answer)] if question.strip() and answer.strip():
            return document(Problem(where, question, answer))
    raise DataError(
        f"{where} has neither 'text' nor 'question' and 'answer' as texts that are not empty: "
        f"{line[:80]!r}"
    )


def _fingerprint(tokens: np.ndarray, tokenizer: Tokenizer, validation: Sequence[str]) -> str:
    digest = hashlib.sha256(tokens.tobytes())
    for part in [tokenizer.rules, *validation]:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    for token in range(tokenizer.vocab_size):
        digest.update(tokenizer.token_bytes(token) + b"\0")
    return digest.hexdigest()
