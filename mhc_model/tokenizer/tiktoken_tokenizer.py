"""Byte-level BPE on tiktoken: any text in, token ids out, and back without loss.

A vocabulary is a table of ranks (token bytes -> id, a lower rank merges first), a regular
expression that cuts text into the pieces within which bytes merge, and one special token that
separates documents. Text never produces the special token, and it never produces text.

A saved tokenizer is three files: `tokenizer.tiktoken` (the ranks), `tokenizer_config.json` and, for
transformers and others that know nothing of tiktoken, `tokenizer.json`. All give the same ids.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import rustbpe
import tiktoken

from mhc_model.errors import CheckpointError, ConfigError, DataError
from mhc_model.files import (
    MAX_TOKENIZER,
    check_regular,
    parse_object,
    read_file,
    without_panics,
)
from mhc_model.tokenizer.base import (
    CONFIG_FILE,
    FAST_FILE,
    PROBE,
    RANKS_FILE,
    TEMPLATE_FILE,
    Tokenizer,
    without_surrogates,
)
from mhc_model.tokenizer.tokenizer_json import fast_tokenizer_json

# Both patterns avoid possessive quantifiers, `$` and (?i:...): tokenizer.json is read by another
# regular expression engine, which would understand these differently.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-4's, except that every digit stands alone: arithmetic is then the same at every place value.
DIGITS_PATTERN = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
GPT2_SPECIAL = "<|endoftext|>"
TRAINED_SPECIAL = "<|bos|>"

# tiktoken's regular expression engine panics on runs of a million.
MAX_WHITESPACE_RUN = 500_000
_TOO_MUCH_WHITESPACE = re.compile(rf"(?<!\s)\s{{{MAX_WHITESPACE_RUN + 1}}}")


class TiktokenTokenizer(Tokenizer):
    """A rank table, a pattern and one special token."""

    def __init__(
        self, ranks: dict[bytes, int], pattern: str, special: str, template: bytes | None = None
    ) -> None:
        """Builds a tokenizer from a vocabulary.

        Args:
            ranks: token bytes -> id; ids are 0 .. len(ranks) - 1, and every single byte is there.
            pattern: regular expression of the pieces; what it does not match would be lost.
            special: name of the token that separates documents; its id is len(ranks).
            template: chat_template.jinja, which is saved with the tokenizer.

        Raises:
            DataError: if the ranks have gaps or lack a byte, or the pattern is not one.
        """
        _check_ranks(ranks)
        if not special:
            raise DataError("the special token has an empty name; name it, for example <|bos|>")
        self.pattern = pattern
        self.special = special
        self._template = template
        self.bos_id = len(ranks)
        self.eos_ids = (self.bos_id,)
        self.special_tokens = {special: self.bos_id}
        self.vocab_size = len(ranks) + 1
        self._bytes = [*sorted(ranks, key=ranks.__getitem__), b""]
        try:
            self._encoding = tiktoken.Encoding(
                "mhc", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        except ValueError as error:
            raise DataError(
                f"split pattern {pattern!r} is not a regular expression: {error}"
            ) from None
        if self.decode(self.encode(PROBE)) != PROBE:
            raise DataError(
                f"split pattern {pattern!r} leaves out a part of {PROBE!r}: every character must "
                f"be in a piece"
            )

    @classmethod
    def from_file(
        cls, path: str | Path, pattern: str = GPT2_PATTERN, special: str = GPT2_SPECIAL
    ) -> TiktokenTokenizer:
        """Reads a file of `base64(token) rank` lines, plain or .gz, such as `gpt2.tiktoken`.

        Raises:
            DataError: if the file is missing or malformed, naming the line.
        """
        return cls(_read_ranks(Path(path)), pattern, special)

    @classmethod
    def from_name(cls, name: str) -> TiktokenTokenizer:
        """A vocabulary that tiktoken downloads and caches; "gpt2" is the one with a single special.

        Raises:
            ConfigError: for another name.
            DataError: if the download fails.
        """
        if name != "gpt2":
            raise ConfigError(
                f"vocabulary {name!r} is unknown; use 'gpt2', or Tokenizer.from_tiktoken_file "
                f"with a file of your own"
            )
        try:
            ranks = tiktoken.get_encoding(name)._mergeable_ranks
        except (OSError, ValueError) as error:
            raise DataError(
                f"vocabulary {name!r} could not be downloaded ({type(error).__name__}); without a "
                f"network use Tokenizer.from_tiktoken_file with a {name}.tiktoken file"
            ) from error
        return cls(ranks, GPT2_PATTERN, GPT2_SPECIAL)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> TiktokenTokenizer:
        """Byte-level BPE trained on `texts`, read once.

        Args:
            texts: documents; no merge crosses from one to the next.
            vocab_size: number of ids wanted, special token included; at least 257. A small corpus
                runs out of pairs earlier: `vocab_size` of the result tells the true number.

        Raises:
            ConfigError: if vocab_size is below 257.
        """
        if vocab_size < 257:
            raise ConfigError(
                f"vocab_size is {vocab_size}; at least 257 are needed: 256 bytes and one "
                f"special token"
            )
        trainer = rustbpe.Tokenizer()
        documents = map(without_surrogates, texts)
        trainer.train_from_iterator(documents, vocab_size - 1, pattern=DIGITS_PATTERN)
        ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
        return cls(ranks, DIGITS_PATTERN, TRAINED_SPECIAL)

    @classmethod
    def load(cls, directory: str | Path) -> TiktokenTokenizer:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: if a file is missing or malformed.
        """
        directory = Path(directory)
        pattern, special = cls.read_rules(directory)
        template = directory / TEMPLATE_FILE
        try:
            ranks = _read_ranks(directory / RANKS_FILE)
            kept = read_file(template) if template.exists() else None
            return cls(ranks, pattern, special, kept)
        except DataError as error:
            raise CheckpointError(f"tokenizer in {directory}: {error}") from None

    @staticmethod
    def read_rules(directory: Path) -> tuple[str, str]:
        """The pattern and the special token that tokenizer_config.json names.

        Raises:
            CheckpointError: if it is missing or malformed.
        """
        path = directory / CONFIG_FILE
        try:
            fields = parse_object(read_file(path, MAX_TOKENIZER), str(path))["mhc_gates"]
            return str(fields["pattern"]), str(fields["special"])
        except (KeyError, TypeError):
            raise CheckpointError(
                f"{path} is malformed: it must be JSON with mhc_gates.pattern and "
                f"mhc_gates.special; save the tokenizer again"
            ) from None

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Token ids of `text`; a special token's name in it is ordinary text.

        Args:
            text: any string; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD.
            bos: put the special token first.

        Raises:
            DataError: if more than half a million whitespace characters follow one another.
        """
        _check_whitespace(text)
        ids = without_panics(lambda: self._encoding.encode_ordinary(text), self._failed)
        return [self.eos_id, *ids] if bos else ids

    def encode_batch(self, texts: Sequence[str], bos: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        threads = min(len(texts), os.cpu_count() or 1)
        if threads <= 1:  # starting a thread would take as long as a page of text
            return [self.encode(text, bos) for text in texts]
        for text in texts:
            _check_whitespace(text)
        rows = without_panics(
            lambda: self._encoding.encode_ordinary_batch(list(texts), num_threads=threads),
            self._failed,
        )
        return [[self.eos_id, *ids] for ids in rows] if bos else rows

    def _failed(self, why: str) -> DataError:
        return DataError(
            f"{why}; the split pattern {self.pattern!r} must not match an empty text, nor leave "
            f"out a part of a text"
        )

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text after the special token, which also ends the text before."""
        return self.encode_batch(texts, bos=True)

    @property
    def rules(self) -> str:
        return self.pattern

    @cached_property
    def files(self) -> dict[str, bytes]:
        """File name -> content. Kept: training saves the same tokenizer with every checkpoint."""
        tokens = self._bytes[:-1]
        lines = (f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens))
        config = json.dumps(self._config(), indent=2, ensure_ascii=False) + "\n"
        return {
            RANKS_FILE: "".join(lines).encode(),
            CONFIG_FILE: config.encode(),
            FAST_FILE: fast_tokenizer_json(tokens, self.pattern, self.special).encode(),
            **({} if self._template is None else {TEMPLATE_FILE: self._template}),
        }

    def _config(self) -> dict[str, Any]:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.special,
            "eos_token": self.special,
            "clean_up_tokenization_spaces": False,
            # Text never produces the special token: without this transformers looks for its name.
            "split_special_tokens": True,
            "mhc_gates": {"pattern": self.pattern, "special": self.special},
        }

    def __getstate__(self) -> dict[str, Any]:
        # The files are cheap to rebuild and megabytes to send.
        return {key: value for key, value in self.__dict__.items() if key != "files"}


def _check_whitespace(text: str) -> None:
    if len(text) > MAX_WHITESPACE_RUN:
        found = _TOO_MUCH_WHITESPACE.search(text)
        if found is not None:
            raise DataError(
                f"text has more than {MAX_WHITESPACE_RUN} whitespace characters in a row at "
                f"character {found.start()}; shorten the run"
            )


def _check_ranks(ranks: dict[bytes, int]) -> None:
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(
            f"the {len(ranks)} ranks of the vocabulary are not 0 to {len(ranks) - 1}, each once"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"the vocabulary lacks {len(missing)} of the 256 single bytes (first "
            f"{missing[0]:#04x}); byte-level BPE needs all of them"
        )


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes -> rank; rejects malformed lines and duplicate tokens with their line number."""
    ranks: dict[bytes, int] = {}
    try:
        for number, line in enumerate(_read_lines(path), start=1):
            if not line.strip():
                continue
            try:
                encoded, rank = line.split()
                token = base64.b64decode(encoded, validate=True)
                value = int(rank)
            except (ValueError, binascii.Error):
                raise DataError(
                    f"{path} line {number} is not 'base64(token) rank': {line[:80]!r}"
                ) from None
            if not token or token in ranks:
                fault = "repeats an earlier token" if token else "has an empty token"
                raise DataError(f"{path} line {number} {fault}: {line[:80]!r}")
            ranks[token] = value
    except (OSError, EOFError, zlib.error, CheckpointError) as error:  # gzip's are the first three
        raise DataError(f"vocabulary file {path} cannot be read: {error}") from None
    return ranks


def _read_lines(path: Path) -> Iterator[bytes]:
    check_regular(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read(MAX_TOKENIZER + 1)
    if len(content) > MAX_TOKENIZER:
        raise DataError(f"vocabulary file {path} has more than {MAX_TOKENIZER} bytes")
    yield from content.splitlines(keepends=True)
