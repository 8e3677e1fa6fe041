"""The language model that a session reads with: an interface, and the engine behind it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from mhc_model.decoder import Decoder
from mhc_model.engine import Completion, Engine, Request, SamplingParams
from mhc_model.errors import CancelledError, EngineError, SessionError
from mhc_model.gates import RequestGates
from mhc_model.policy import prompt_observation
from mhc_model.recursion.search import Embedder, TextIndex
from mhc_model.recursion.search.lexical import MAX_WINDOWS
from mhc_model.recursion.settings import SessionSettings
from mhc_model.tokenizer import Tokenizer

Gates = RequestGates
"""As the HTTP API takes them: numbers, names, None, and what else a model understands."""

PASSAGE_CHARS = 960
_SAMPLE = 20_000  # characters from which the characters of a token are estimated
_TEXT_SHARE = 0.6  # of a prompt: the rest is the question and what is asked of the model
_EMBED_BATCH = 8  # passages in one forward pass


class CancelToken:
    """Ends a session from another thread; cancelling cannot be undone."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def cancel(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises CancelledError once cancelled."""
        if self.cancelled:
            raise CancelledError("the session was cancelled")


@dataclass(frozen=True)
class Generated:
    """What the model made of one prompt.

    Attributes:
        text: the completion.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens generated.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


class LanguageModel(Protocol):
    """What a session needs of a model."""

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its completion together."""

    @property
    def embedder(self) -> Embedder | None:
        """For embedding search; None where the model has none to offer."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt, special ones included; an estimate must be an upper one."""

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str],
        gates: Gates,
        cancel: CancelToken,
    ) -> list[Generated]:
        """Completes all prompts greedily in one batch, in order.

        Raises:
            CancelledError: soon after the token is cancelled; the batch's rows are then free.
            MHCError: whatever the model refuses.
        """


class EngineModel:
    """An engine in this process. The thread that calls drives the engine."""

    def __init__(
        self, engine: Engine, embedding: Literal["tokens", "hidden"] | None = "tokens"
    ) -> None:
        """Takes an engine that nobody else drives meanwhile.

        Args:
            engine: with a tokenizer.
            embedding: what passages are compared by: "tokens" averages the embeddings of their
                tokens, which costs no forward pass; "hidden" the last layer's outputs, which costs
                one over the whole text; None leaves embedding search out.

        Raises:
            SessionError: if the engine has no tokenizer.
        """
        if engine.tokenizer is None:
            raise SessionError("the engine has no tokenizer; load a checkpoint saved with one")
        self._engine = engine
        self._tokenizer = engine.tokenizer
        self._embedding = embedding

    @property
    def context(self) -> int:
        return self._engine.max_seq_len

    @property
    def embedder(self) -> Embedder | None:
        if self._embedding is None:
            return None
        if self._embedding == "tokens":
            return token_embedder(self._engine.model, self._tokenizer)
        return Embedder(self._mean_hidden, "texts")

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, bos=True))

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str],
        gates: Gates,
        cancel: CancelToken,
    ) -> list[Generated]:
        """See `LanguageModel.generate`; gates are what `resolve_gates` takes."""
        if self._engine.has_work:
            raise EngineError("the engine has other work; a session needs it for itself")
        requests = engine_requests(self._tokenizer, prompts, max_tokens, stop, gates)
        done: dict[str, Completion] = {}
        queued: list[str] = []
        try:
            for request in requests:
                queued.append(self._engine.add(request))
            while self._engine.has_work:
                cancel.check()
                done.update((ended.request_id, ended) for ended in self._engine.step())
        finally:  # cancelled, or one request was refused: leave nothing behind
            for request_id in queued:
                if request_id not in done:
                    self._engine.cancel(request_id)
            while self._engine.has_work:
                self._engine.step()
        return [as_generated(request, done[request.id]) for request in requests]

    @torch.inference_mode()
    def _mean_hidden(self, texts: Sequence[str]) -> Tensor:
        """(b, c) float32: the mean output of the last layer over each text's tokens."""
        means = []
        model, limit = self._engine.model, self._engine.model.config.max_seq_len
        for first in range(0, len(texts), _EMBED_BATCH):
            rows = [
                self._tokenizer.encode(text, bos=True)[:limit]
                for text in texts[first : first + _EMBED_BATCH]
            ]
            tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
            for number, row in enumerate(rows):
                tokens[number, : len(row)] = torch.tensor(row)
            hidden = model.hidden(tokens.to(self._engine.device)).float().cpu()
            means += [hidden[number, : len(row)].mean(0) for number, row in enumerate(rows)]
        return torch.stack(means)


def engine_requests(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    stop: Sequence[str],
    gates: Gates,
) -> list[Request]:
    """Greedy requests of one batch."""
    sampling = SamplingParams(max_tokens=max_tokens, stop=tuple(stop))
    return [
        Request(tokenizer.encode(prompt, bos=True), gates=gates, sampling=sampling)
        for prompt in prompts
    ]


def as_generated(request: Request, completion: Completion) -> Generated:
    return Generated(completion.text or "", len(request.prompt), len(completion.tokens))


def token_embedder(model: Decoder, tokenizer: Tokenizer) -> Embedder:
    """Mean token embeddings: a look-up, safe in any thread beside a running engine."""

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Tensor:
        return prompt_observation(model, [tokenizer.encode(text) for text in texts])

    return Embedder(embed, "words")


def index_for(
    text: str,
    model: LanguageModel,
    settings: SessionSettings,
    passage_chars: int = PASSAGE_CHARS,
    cancel: CancelToken | None = None,
) -> TextIndex:
    """An index whose passages fit into the model's context with a question and an answer.

    They overlap by a quarter. A small context makes them smaller than `passage_chars`, but never so
    small that the index of a long text outgrows its bounds: the verbs cut what does not fit.

    Args:
        text: to be searched.
        model: reads the passages, and embeds them if it can.
        settings: of the session.
        passage_chars: longest passage.
        cancel: ends the reading from another thread.

    Raises:
        SessionError: for an empty text.
        CancelledError: once cancelled.
    """
    sample = text[:_SAMPLE]
    per_token = len(sample) / max(1, model.count_tokens(sample))
    room = _TEXT_SHARE * (model.context - settings.max_tokens)
    size = max(8, min(passage_chars, int(per_token * room)))
    size = max(size, 8 * len(text) // MAX_WINDOWS + 1)
    check = (cancel or CancelToken()).check
    return TextIndex(text, size, size // 4, model.embedder, check)
