"""Answers of a given form: JSON by a schema, a regular expression, a choice, a grammar.

llguidance follows a row's text and says before each token which ones may come next. It is loaded
when the first request asks for a form. Safe to call from any thread, but for a `Matcher`, which
belongs to its row.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mhc_model.errors import EngineError
from mhc_model.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

# Compiled forms that wait for their requests.
MOST_READY = 256
MAX_SOURCE = 200_000


@dataclass(frozen=True)
class Structure:
    """The form of an answer.

    Attributes:
        kind: what `source` is.
        source: a JSON schema; a regular expression of Rust's `regex` for the whole answer; a JSON
            list of texts, of which the answer is one; a grammar in Lark's or GBNF's form.
        compact: no white space between the parts of JSON.
    """

    kind: Literal["json", "regex", "choice", "grammar"]
    source: str
    compact: bool = False


class Matcher:
    """Where one row is in its form."""

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self.inner = inner

    def copy(self) -> Matcher:
        """Another row at the same place."""
        return Matcher(self.inner.deep_copy())

    def take(self, token: int) -> None:
        """The next token, one that was allowed."""
        if not self.inner.is_stopped():
            self.inner.consume_token(token)

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return bool(self.inner.is_stopped())

    @property
    def failed(self) -> bool:
        """Whether it is over since the form became too complex to follow."""
        return bool(self.inner.is_error())


class Grammars:
    """Compiles forms for the tokens of one model."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        """Compiles nothing yet.

        Args:
            tokenizer: of the model.
            vocabulary: of the model, which may be padded.
        """
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._tokens: llguidance.LLTokenizer | None = None
        self._ready: deque[tuple[Structure, llguidance.LLMatcher]] = deque(maxlen=MOST_READY)
        self._lock = threading.Lock()

    def prepare(self, structure: Structure, count: int = 1) -> None:
        """Compiles a form for requests to come, which takes up to a second.

        Raises:
            EngineError: if the form is malformed or uses what llguidance does not have.
        """
        compiled = [(structure, self._compile(structure)) for _ in range(count)]
        with self._lock:
            self._ready.extend(compiled)  # the oldest go, where there are too many

    def matcher(self, structure: Structure) -> Matcher:
        """A row at the beginning of its form, prepared or compiled now.

        Each request gets one of its own: copies share what llguidance has worked out, and the
        limits of that.

        Raises:
            EngineError: as `prepare`.
        """
        with self._lock:
            for entry in self._ready:
                if entry[0] == structure:
                    self._ready.remove(entry)
                    return Matcher(entry[1])
        return Matcher(self._compile(structure))

    def _compile(self, structure: Structure) -> llguidance.LLMatcher:
        import llguidance

        if len(structure.source) > MAX_SOURCE:
            raise EngineError(
                f"the {structure.kind} of the answer's form has {len(structure.source)} "
                f"characters; it may have {MAX_SOURCE}"
            )
        with self._lock:
            if self._tokens is None:
                self._tokens = _tokens_of(self._tokenizer, self._vocabulary)
        try:
            compiled = llguidance.LLMatcher(self._tokens, _grammar(structure), log_level=0)
            first = compiled.deep_copy()
            first.compute_bitmask()  # some forms cannot even begin
            problem = first.get_error().partition("\n<state>")[0]
        except ValueError as error:
            problem = str(error)
        if "NoExtension" in problem:
            problem = "no text has it"
        if problem:
            raise EngineError(f"the {structure.kind} of the answer's form is refused: {problem}")
        return compiled


def fill_bits(matchers: Sequence[tuple[Matcher, int]], words: Tensor) -> None:
    """Writes which tokens may come next, a bit a token.

    Args:
        matchers: each with its row of `words`.
        words: (r, w) int32 on the CPU.
    """
    import llguidance.numpy

    pairs = [(matcher.inner, row) for matcher, row in matchers]
    llguidance.numpy.fill_next_token_bitmask_par(_executor(), pairs, words.numpy())
    for matcher, row in matchers:
        if matcher.failed:
            words[row] = -1  # the row ends with whatever comes


@cache
def _executor() -> llguidance.LLExecutor:
    import llguidance

    return llguidance.LLExecutor(num_threads=torch.get_num_threads())


def _grammar(structure: Structure) -> str:
    import llguidance

    if structure.kind == "json":
        return llguidance.LLMatcher.grammar_from_json_schema(
            structure.source, defaults={"whitespace_flexible": not structure.compact}
        )
    if structure.kind == "choice":
        texts = json.loads(structure.source)
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError("it must be a list of at least one text")
    return llguidance.grammar_from(structure.kind, structure.source)


class _Vocabulary:
    """Our tokenizer as llguidance wants one."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.tokens += [b""] * (size - len(self.tokens))  # never allowed
        for name, token in tokenizer.special_tokens.items():
            self.tokens[token] = name.encode()  # not a text's: they are marked as special
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = tokenizer.eos_id

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode())


def _tokens_of(tokenizer: Tokenizer, vocabulary: int) -> llguidance.LLTokenizer:
    import llguidance

    wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, vocabulary))
    return llguidance.LLTokenizer(wrapper, n_vocab=vocabulary, eos_token=list(tokenizer.eos_ids))
