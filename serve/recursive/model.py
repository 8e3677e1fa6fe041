"""The served model as a session reads with it: its prompts join the batch of everybody else's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from http import HTTPStatus
from typing import Any, Protocol

from mhc_model.engine import Completion
from mhc_model.recursion import CancelToken, Embedder, Gates, Generated, as_generated
from mhc_model.tokenizer import Tokenizer
from serve.completions import CompletionRequest, Prepared
from serve.errors import APIError

_POLL_S = 0.02
_BUSY_S = 0.2  # until prompts that found a full queue are offered again


class PromptService(Protocol):
    """What `ServedModel` needs of a service."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its completion."""

    @property
    def embedder(self) -> Embedder: ...

    @property
    def capacity(self) -> int:
        """Prompts that the queue holds at most."""

    def submit(self, body: CompletionRequest) -> tuple[Prepared, Future[list[Completion]]]:
        """Prepares and queues prompts, in any thread."""


class ServedModel:
    """A `LanguageModel` for one session, in a thread of its own.

    Attributes:
        gates: of the last call, and where they came from, as a completion gives them; nothing
            before the first call.
    """

    def __init__(self, service: PromptService) -> None:
        self._service = service
        # A session leaves room in the queue for others.
        self._batch = max(1, service.capacity // 2)
        self.gates: dict[str, Any] = {}

    @property
    def context(self) -> int:
        return self._service.context

    @property
    def embedder(self) -> Embedder:
        return self._service.embedder

    def count_tokens(self, text: str) -> int:
        return len(self._service.tokenizer.encode(text, bos=True))

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str],
        gates: Gates,
        cancel: CancelToken,
    ) -> list[Generated]:
        """See `LanguageModel.generate`; gates as in a request's body.

        Where the queue is full it waits: a session is not to fail half way for that.

        Raises:
            APIError: 503 if the engine does not run.
            GateError, EngineError, DataError: what a completion's request would get.
        """
        done: list[Generated] = []
        for first in range(0, len(prompts), self._batch):
            body = CompletionRequest.model_validate(
                {
                    "prompt": list(prompts[first : first + self._batch]),
                    "max_tokens": max_tokens,
                    "temperature": 0.0,
                    "stop": list(stop),
                    "gates": gates,
                }
            )
            prepared, future = self._submit(body, cancel)
            self.gates = {**prepared.gates.numbers(-1), **prepared.gates.labels}
            completions = _result(future, cancel)
            done += map(as_generated, prepared.requests, completions)
        return done

    def _submit(
        self, body: CompletionRequest, cancel: CancelToken
    ) -> tuple[Prepared, Future[list[Completion]]]:
        while True:
            cancel.check()
            try:
                return self._service.submit(body)
            except APIError as error:
                if error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    raise
            time.sleep(_BUSY_S)


def _result(future: Future[list[Completion]], cancel: CancelToken) -> list[Completion]:
    """The future's result; cancelling frees the rows of its prompts at the next step."""
    try:
        while not wait([future], timeout=_POLL_S).done:
            cancel.check()
        return future.result()
    finally:
        future.cancel()
