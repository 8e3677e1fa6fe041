"""Tokens and log-probabilities in the two forms of OpenAI's APIs."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TypedDict

from mhc_model.engine import Alternatives
from mhc_model.tokenizer import Tokenizer


class LegacyLogprobs(TypedDict):
    """Of /v1/completions: one entry a token in each list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class ChatTokenLogprob(TypedDict):
    """Of /v1/chat/completions: a token at one position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatChosenLogprob(ChatTokenLogprob):
    """The token that was generated."""

    top_logprobs: list[ChatTokenLogprob]


class TokenNames:
    """How each token is called where it stands alone, computed once.

    Its text; `bytes:\\x..` where it is no whole character, so that two tokens seldom share a name;
    names of special tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bytes = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.names = [_name(value) for value in self.bytes]
        for name, token in tokenizer.special_tokens.items():
            self.names[token] = name

    def chat(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        top: Sequence[Alternatives] | None,
    ) -> list[ChatChosenLogprob]:
        """Entries of chat's `logprobs.content`.

        Args:
            tokens: ids.
            logprobs: one a token.
            top: the likeliest tokens at each; None where not asked for.
        """
        return [
            {
                **self._chat_token(token, logprob),
                "top_logprobs": [
                    self._chat_token(*other) for other in (top[position] if top else ())
                ],
            }
            for position, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True))
        ]

    def _chat_token(self, token: int, logprob: float) -> ChatTokenLogprob:
        return {
            "token": self.names[token],
            "logprob": logprob,
            "bytes": list(self.bytes[token]),
        }


class LogprobWriter:
    """Writes `LegacyLogprobs` of one choice, piece after piece; keeps where in its text it is."""

    def __init__(self, names: TokenNames, top: bool) -> None:
        """Starts at the beginning of a choice's text.

        Args:
            names: of the tokens.
            top: whether the likeliest tokens are listed.
        """
        self._names = names
        self._top = top
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float | None],
        top: Sequence[Alternatives] | None,
        final: bool,
    ) -> LegacyLogprobs:
        """The next tokens; a character that takes several counts for the one that completes it.

        Args:
            tokens: ids.
            logprobs: one a token; None for a prompt's first.
            top: the likeliest tokens at each.
            final: no more tokens follow, so that a character cut short has to come out.
        """
        last = len(tokens) - 1
        pieces: list[str] = []
        offsets: list[int] = []
        for position, token in enumerate(tokens):
            piece = self._decoder.decode(self._names.bytes[token], final=final and position == last)
            pieces.append(piece)
            offsets.append(self._offset)
            self._offset += len(piece)
        return {
            "tokens": pieces,
            "token_logprobs": list(logprobs),
            "top_logprobs": self._likeliest(tokens, logprobs, top or ()) if self._top else None,
            "text_offset": offsets,
        }

    def _likeliest(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float | None],
        top: Sequence[Alternatives],
    ) -> list[dict[str, float] | None]:
        """Name -> log-probability at each position; of two tokens with one name, the likelier."""
        names = self._names.names
        entries: list[dict[str, float] | None] = []
        for token, logprob, others in zip(tokens, logprobs, top, strict=True):
            if logprob is None:
                entries.append(None)
                continue
            entry: dict[str, float] = {}
            for other, value in others:
                entry.setdefault(names[other], value)
            entry.setdefault(names[token], logprob)
            entries.append(entry)
        return entries


def joined(first: LegacyLogprobs, second: LegacyLogprobs) -> LegacyLogprobs:
    """The entries of one piece and those of the next."""
    top = None
    if first["top_logprobs"] is not None and second["top_logprobs"] is not None:
        top = first["top_logprobs"] + second["top_logprobs"]
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": top,
        "text_offset": first["text_offset"] + second["text_offset"],
    }


def _name(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in value)
