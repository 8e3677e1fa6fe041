"""Byte-level BPE as converted models bring it: their tokenizer.json, through `tokenizers`.

A saved tokenizer keeps the files of the source. Our part of tokenizer_config.json is `mhc_gates`:
the size of the model's vocabulary, which is often padded, and the tokens that begin and end texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from mhc_model.errors import CheckpointError, DataError
from mhc_model.files import (
    MAX_TOKENIZER,
    parse_object,
    read_file,
    token_ids,
    without_panics,
)
from mhc_model.tokenizer.base import (
    CONFIG_FILE,
    FAST_FILE,
    PROBE,
    TEMPLATE_FILE,
    Tokenizer,
    without_surrogates,
)
from mhc_model.tokenizer.tokenizer_json import byte_alphabet

MAX_IDS = 2**24  # of a vocabulary; the largest known have about a million


class FastTokenizer(Tokenizer):
    """A tokenizer.json that is byte-level BPE."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        vocab_size: int,
        bos_id: int | None,
        eos_ids: Sequence[int],
        source: str = "the tokenizer",
    ) -> None:
        """Builds a tokenizer.

        Args:
            files: name -> content; tokenizer.json, and whatever is to be kept with it.
            vocab_size: of the model.
            bos_id: what the model's texts begin with, if anything.
            eos_ids: at which they end, at least one.
            source: named in errors.

        Raises:
            CheckpointError: if tokenizer.json is malformed or of another kind, has an id beyond
                vocab_size, or there is no eos id.
        """
        self._kept = dict(files)
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_ids = tuple(eos_ids)
        self.source = source
        if not isinstance(vocab_size, int) or not 1 <= vocab_size <= MAX_IDS:
            raise CheckpointError(
                f"{source}: vocab_size is {vocab_size!r:.100}; it must be 1 to {MAX_IDS}"
            )
        token_ids([*self.eos_ids, *([] if bos_id is None else [bos_id])], f"{source}: bos or eos")
        if not self.eos_ids:
            raise CheckpointError(f"{source} names no end-of-text token (eos_token)")
        self._fast = _read_fast(self._kept[FAST_FILE], source)
        added = self._fast.get_added_tokens_decoder()
        self.special_tokens = {t.content: i for i, t in added.items() if t.special}
        self._bytes = _token_bytes(self._fast, vocab_size, source)
        for name, token in (("bos", bos_id), *(("eos", i) for i in self.eos_ids)):
            if token is not None and not 0 <= token < vocab_size:
                raise CheckpointError(
                    f"{source}: {name} id {token} is outside the vocabulary of 0 to "
                    f"{vocab_size - 1}"
                )

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, bytes],
        vocab_size: int | None = None,
        eos_ids: Sequence[int] = (),
        source: str = "the tokenizer",
        separator: str | None = None,
    ) -> FastTokenizer:
        """A source's own tokenizer.

        Args:
            files: tokenizer.json and, as far as there are any, tokenizer_config.json and
                chat_template.jinja.
            vocab_size: of the model; None takes the tokenizer's.
            eos_ids: those that the model's own configuration names; the tokenizer's is added.
            source: named in errors.
            separator: name of the token that begins and ends each text, where there is one.

        Raises:
            CheckpointError: as the constructor, or if tokenizer_config.json is malformed.
        """
        config = _read_config(files, source)
        fast = _read_fast(files[FAST_FILE], source)
        bos, eos = (_named_id(fast, config.get(f"{name}_token")) for name in ("bos", "eos"))
        if separator is not None:
            bos = eos = _named_id(fast, separator)
        begins = (
            separator is not None
            or fast.encode("").ids[:1] == [bos]
            or config.get("add_bos_token") is True
        )
        ends = [*eos_ids, *([] if eos is None or eos in eos_ids else [eos])]
        size = fast.get_vocab_size() if vocab_size is None else vocab_size
        return cls(files, size, bos if begins else None, ends, source)

    @classmethod
    def load(cls, directory: Path) -> FastTokenizer:
        """Reads what `save` wrote, or a directory of transformers' tokenizer files.

        Raises:
            CheckpointError: if a file is missing or malformed.
        """
        files = tokenizer_files(directory)
        if FAST_FILE not in files:
            raise CheckpointError(f"{directory} has no {FAST_FILE}")
        source = str(directory)
        own = _read_config(files, source).get("mhc_gates")
        if own is None:
            return cls.from_files(files, source=source)
        try:
            return cls(files, own["vocab_size"], own["bos_id"], own["eos_ids"], source)
        except (KeyError, TypeError):
            raise CheckpointError(
                f"{directory / CONFIG_FILE} is malformed: mhc_gates must have vocab_size, bos_id "
                f"and eos_ids; convert the model again"
            ) from None

    @property
    def rules(self) -> str:
        return self._kept[FAST_FILE].decode("utf-8")

    def encode(self, text: str, bos: bool = False) -> list[int]:
        return self.encode_batch([text], bos)[0]

    def encode_batch(self, texts: Sequence[str], bos: bool = False) -> list[list[int]]:
        plain = list(map(without_surrogates, texts))
        start = [self.bos_id] if bos and self.bos_id is not None else []
        encoded = without_panics(
            lambda: self._fast.encode_batch(plain, add_special_tokens=False), DataError
        )
        return [[*start, *row.ids] for row in encoded]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text as the model knows them: after `bos_id`, if it has one, and before `eos_id`."""
        return [[*row, self.eos_id] for row in self.encode_batch(texts, bos=True)]

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """The source's files, with our entry in tokenizer_config.json."""
        own = {"vocab_size": self.vocab_size, "bos_id": self.bos_id, "eos_ids": list(self.eos_ids)}
        config = {**_read_config(self._kept, self.source), "mhc_gates": own}
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        return {**self._kept, CONFIG_FILE: text.encode()}

    def __reduce__(self) -> tuple[Any, ...]:
        # `tokenizers` does not keep every setting when it is pickled.
        arguments = (self._kept, self.vocab_size, self.bos_id, self.eos_ids, self.source)
        return FastTokenizer, arguments


def tokenizer_files(directory: Path) -> dict[str, bytes]:
    """Name -> content of transformers' tokenizer files, as far as there are any."""
    paths = [directory / name for name in (FAST_FILE, CONFIG_FILE, TEMPLATE_FILE)]
    return {path.name: read_file(path, MAX_TOKENIZER) for path in paths if path.exists()}


def _read_fast(content: bytes, source: str) -> tokenizers.Tokenizer:
    where = f"{source}: {FAST_FILE}"
    try:
        text = content.decode("utf-8-sig")
        fast: tokenizers.Tokenizer = without_panics(
            lambda: tokenizers.Tokenizer.from_str(text), CheckpointError
        )
        decoder = json.loads(fast.decoder.__getstate__()) if fast.decoder is not None else {}
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise CheckpointError(f"{where} cannot be read: {error}") from None
    # The library knows the kind of a model that does not name it, as GPT-2's own file.
    kind = type(fast.model).__name__
    decoders = [decoder, *decoder.get("decoders", [])]
    if kind != "BPE" or all(d.get("type") != "ByteLevel" for d in decoders):
        raise CheckpointError(
            f"{where} is {kind} with the decoder {decoder.get('type')}; supported: byte-level BPE"
        )
    fast.model.dropout = None  # merges left out by chance
    without_panics(
        lambda: fast.encode(PROBE),
        lambda why: CheckpointError(f"{where} does not take a text: {why}"),
    )
    fast.no_padding()
    fast.no_truncation()
    fast.encode_special_tokens = True  # their names in a text are text
    return fast


def _read_config(files: Mapping[str, bytes], source: str) -> dict[str, Any]:
    return parse_object(files.get(CONFIG_FILE, b"{}"), f"{source}: {CONFIG_FILE}")


def _named_id(fast: tokenizers.Tokenizer, name: Any) -> int | None:
    """Id of a token as tokenizer_config.json names it: a string, or an object with `content`."""
    if isinstance(name, dict):
        name = name.get("content")
    return fast.token_to_id(name) if isinstance(name, str) else None


def _token_bytes(fast: tokenizers.Tokenizer, vocab_size: int, source: str) -> list[bytes]:
    """Bytes by id up to the last token; empty for special tokens and for ids without a token."""
    added = fast.get_added_tokens_decoder()
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    names = fast.get_vocab()
    table = [b""] * min(vocab_size, 1 + max(names.values(), default=-1))
    for name, token in names.items():
        if token >= vocab_size:
            raise CheckpointError(
                f"{source}: {FAST_FILE} has the token {name!r} with id {token}, the model only "
                f"{vocab_size} ids"
            )
        if token in added:
            table[token] = b"" if added[token].special else name.encode()
            continue
        try:
            table[token] = bytes(byte_of[character] for character in name)
        except KeyError:
            raise CheckpointError(
                f"{source}: the token {name!r} in {FAST_FILE} is not byte-level BPE's"
            ) from None
    return table
