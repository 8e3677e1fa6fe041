"""Text to token ids and back: what the model's vocabulary must offer, whoever made it.

There are two kinds. `TiktokenTokenizer` has the vocabularies of models that are trained here;
`FastTokenizer` has those that come with converted models, as their tokenizer.json. Both are
byte-level BPE: the bytes of a text are the bytes of its tokens, one after another. Text never
produces special tokens, and they never produce text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mhc_model.errors import DataError

RANKS_FILE = "tokenizer.tiktoken"
CONFIG_FILE = "tokenizer_config.json"
FAST_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"

# What every tokenizer must take: a pattern that a file brings may fail, or leave text out.
PROBE = "It's 3 + 4 = 17.\n\n\tnaïve café,  two  spaces\r\n北京 🙂 <|x|> " + "a" * 64 + " b "


class Tokenizer(ABC):
    """Text to token ids and back. Immutable, picklable, safe to share between threads.

    Attributes:
        vocab_size: number of ids, those of special tokens and of padding included.
        bos_id: what the model's texts begin with; None if they begin with nothing.
        eos_ids: tokens at which a generated text ends.
        special_tokens: name -> id of the tokens that no text produces.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    special_tokens: Mapping[str, int]
    _bytes: Sequence[bytes]  # by id, as far as there are tokens

    # Ways to a tokenizer that load.py hangs up here, since this class knows no kind.
    from_directory: ClassVar[Callable[..., Tokenizer]]
    from_tiktoken_file: ClassVar[Callable[..., Tokenizer]]
    from_name: ClassVar[Callable[..., Tokenizer]]
    train: ClassVar[Callable[..., Tokenizer]]

    @property
    def eos_id(self) -> int:
        """The token that ends a text, first of `eos_ids`."""
        return self.eos_ids[0]

    @property
    def start_id(self) -> int:
        """The token before the first of a text, in training and where text is scored."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @property
    @abstractmethod
    def rules(self) -> str:
        """What decides the ids of a text beside the bytes of the tokens."""

    @abstractmethod
    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Token ids of `text`; a special token's name in it is ordinary text.

        Args:
            text: any string; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD.
            bos: put `bos_id` first, if the model has one.

        Raises:
            DataError: if the tokenizer cannot take the text.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], bos: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores."""

    @abstractmethod
    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with its borders, to be trained on one after another."""

    def encode_marked(self, text: str) -> list[int]:
        """As `encode`, but names of special tokens are these tokens: for a rendered conversation.

        Raises:
            DataError: as `encode`.
        """
        names = sorted(self.special_tokens, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
        ids: list[int] = []
        for part in parts:
            special = self.special_tokens.get(part)
            ids += self.encode(part) if special is None else [special]
        return ids

    @property
    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """File name -> content: what `save` writes."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 (a character cut in two) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`, one after another; special tokens give none.

        Raises:
            DataError: if an id is not in the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token, empty for special tokens and padding.

        Raises:
            DataError: if the id is not in the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise DataError(
                f"token id {token} is outside the vocabulary of 0 to {self.vocab_size - 1}"
            )
        return self._bytes[token] if token < len(self._bytes) else b""

    def token_byte_lengths(self) -> Tensor:
        """(vocab_size,) int64 number of bytes of every token, 0 for special tokens."""
        lengths = torch.zeros(self.vocab_size, dtype=torch.int64)
        lengths[: len(self._bytes)] = torch.tensor([len(token) for token in self._bytes])
        return lengths

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files into `directory`, creating it if needed."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)


def without_surrogates(text: str) -> str:
    """What tiktoken makes of text that UTF-8 cannot hold: pairs joined, lone surrogates U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
