"""What the routes do: a request becomes engine requests with gates, completions become a response.

No HTTP server and no Ray in here: `CompletionService` runs wherever an engine does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from http import HTTPStatus
from typing import TypeVar

from fastapi import Request, Response

from mhc_model.engine import Completion, EngineBase
from mhc_model.errors import ConfigError
from mhc_model.policy import GatePolicy
from mhc_model.recursion import token_embedder
from mhc_model.tokenizer import Tokenizer
from serve.completions import (
    Batcher,
    ChatRequest,
    ChatTemplate,
    ChatWriter,
    CompletionRequest,
    CompletionWriter,
    EngineCall,
    EventStream,
    Health,
    ModelCard,
    ModelIdentity,
    ModelList,
    Prepared,
    Preparer,
    Ready,
    ResponseWriter,
    TokenNames,
    behaviour_cards,
    on_disconnect,
)
from serve.errors import APIError, timed_out, unavailable
from serve.monitoring import Observer, Observers, RequestTrace, trace_of

T = TypeVar("T")


class CompletionService:
    """Answers requests with one engine. Close it to end the engine's thread."""

    def __init__(
        self,
        engine: EngineBase,
        model_name: str,
        max_queue: int = 256,
        policy: GatePolicy | None = None,
        aliases: Sequence[str] = (),
        chat_template: ChatTemplate | None = None,
        request_timeout_s: float = 600.0,
        observer: Observer | None = None,
        stall_s: float = math.inf,
    ) -> None:
        """Takes over the engine.

        Args:
            engine: of a checkpoint with a tokenizer.
            model_name: what the API calls the model.
            max_queue: samples that may wait besides those being decoded.
            policy: chooses the gates where a request says "policy".
            aliases: further names that requests may give, such as the checkpoint's path.
            chat_template: of conversations; None takes `ChatTemplate.default`.
            request_timeout_s: a request that takes longer is cancelled and gets a 504.
            observer: hears of every request and of the engine's load; None: nobody does.
            stall_s: seconds that a step of the engine may take; then the service has failed.

        Raises:
            ConfigError: if the engine has no tokenizer or no checkpoint, or the policy was trained
                on another checkpoint.
        """
        if engine.tokenizer is None or engine.checkpoint_hash is None:
            raise ConfigError(
                "the served engine needs a tokenizer and a checkpoint hash; save the checkpoint "
                "with its tokenizer and load it with Engine.from_checkpoint"
            )
        if policy is not None:
            check_policy(policy, engine.checkpoint_hash)
        self.config = engine.model.config
        self.observer: Observer = Observers() if observer is None else observer
        self._names = {model_name, engine.checkpoint_hash, *aliases}
        self.timeout_s = request_timeout_s
        self.embedder = token_embedder(engine.model, engine.tokenizer)
        self.identity = ModelIdentity(
            model_name, engine.checkpoint_hash, engine.tokenizer, TokenNames(engine.tokenizer)
        )
        self.card = _card(engine, model_name, policy is not None)
        capacity = engine.max_batch + max_queue
        template = ChatTemplate.default() if chat_template is None else chat_template
        self.preparer = Preparer(engine, engine.tokenizer, capacity, policy, template)
        self._batcher = Batcher(engine, max_queue, self.observer.load, stall_s)

    def close(self, drain_s: float = 0.0) -> None:
        """Refuses new requests and ends the engine's thread; blocks, may be called again.

        Args:
            drain_s: seconds for the requests under way; the rest of them fails with a 503.
        """
        self._batcher.close(drain_s)

    @property
    def failure(self) -> str | None:
        """Why the engine no longer runs; None while it does."""
        return self._batcher.failure

    @property
    def tokenizer(self) -> Tokenizer:
        return self.identity.tokenizer

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its completion together."""
        return self.card.max_model_len

    @property
    def capacity(self) -> int:
        """Samples that are accepted at a time."""
        return self._batcher.capacity

    def submit(self, body: CompletionRequest) -> tuple[Prepared, Future[list[Completion]]]:
        """Prepares and queues prompts of the server's own, such as a session's; in any thread.

        Raises:
            APIError, GateError, EngineError, DataError: as `complete`.
        """
        prepared = self.preparer.completion(body)
        return prepared, self._batcher.submit(prepared.requests)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Answers POST /v1/completions.

        If the client goes away, or the task that awaits this is cancelled, the rows of its prompts
        are freed.

        Raises:
            APIError, GateError, EngineError, DataError: all of them have an HTTP form
                (`serve.errors.as_api_error`).
            ClientDisconnect: if nobody waits for the answer.
        """
        self.check_model(body.model)
        # Tokenising and the policy take milliseconds of CPU: not on the event loop.
        prepared = await asyncio.to_thread(self.preparer.completion, body)
        writer = CompletionWriter(self.identity, body, prepared)
        return await self._answer(writer, prepared, body.stream, request)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answers POST /v1/chat/completions, as `complete`."""
        self.check_model(body.model)
        prepared = await asyncio.to_thread(self.preparer.chat, body)
        writer = ChatWriter(self.identity, body, prepared)
        return await self._answer(writer, prepared, body.stream, request)

    async def run(self, function: Callable[[EngineBase], T]) -> T:
        """Runs a function on the engine's thread, between two steps.

        Raises:
            APIError: 429 if the queue is full, 503 if the engine does not run, 504 if its turn
                does not come in time. And what the function raises.
        """
        waiting = asyncio.wrap_future(self._batcher.run(function))
        try:
            return await asyncio.wait_for(waiting, self.timeout_s)
        except TimeoutError:
            raise timed_out(self.timeout_s) from None

    def models(self) -> ModelList:
        """Answers GET /v1/models."""
        return ModelList(data=[self.card])

    def model(self, name: str) -> ModelCard:
        """Answers GET /v1/models/{model}.

        Raises:
            APIError: 404 for a name that requests may not give either.
        """
        self.check_model(name)
        return self.card

    def health(self) -> Health:
        """Answers GET /health.

        Raises:
            APIError: 503 if the engine does not run.
        """
        if self.failure is not None:
            raise unavailable(self.failure)
        active = self._batcher.active
        return Health(
            model=self.identity.model,
            checkpoint=self.identity.checkpoint,
            active=active,
            waiting=max(0, self._batcher.pending - active),
        )

    def ready(self) -> Ready:
        """Answers GET /ready.

        Raises:
            APIError: 503 if a request would be refused now.
        """
        refusal = self._batcher.refusal
        if refusal is not None:
            raise unavailable(refusal)
        return Ready()

    def check_model(self, name: str | None) -> None:
        """Refuses a name that is not this model's.

        Raises:
            APIError: 404.
        """
        if name is not None and name not in self._names:
            raise APIError(
                HTTPStatus.NOT_FOUND,
                f"model {name!r} is not served here; use {self.identity.model!r} or leave the "
                f"field out",
                "model",
                "model_not_found",
            )

    async def _answer(
        self, writer: ResponseWriter, prepared: Prepared, stream: bool, request: Request
    ) -> Response:
        trace = trace_of(request)
        trace.prompt_tokens = prepared.prompt_tokens
        trace.used_gates(prepared.gates.hash, prepared.gates.labels)
        call = EngineCall(self._batcher, prepared.requests, self.timeout_s)
        trace.accepted(prepared.samples)
        if stream:
            return EventStream(call, writer, trace)
        completions = await _all(call, request)
        _record(trace, call, completions)
        # Thousands of log-probabilities take longer to write than others may wait.
        content = await asyncio.to_thread(writer.response, completions)
        trace.cached_tokens = writer.cached_tokens
        return Response(content, media_type="application/json")


async def _all(call: EngineCall, request: Request) -> list[Completion]:
    """Waits for a call's end or its client's."""
    with call:
        async with on_disconnect(request.receive, call.leave):
            events = [event async for step in call for event in step]
    return [event for event in events if isinstance(event, Completion)]


def _record(trace: RequestTrace, call: EngineCall, completions: Sequence[Completion]) -> None:
    first = [done.timings.first_token_s for done in completions if done.tokens]
    if first:
        trace.first_token(call.submitted + min(first))
    trace.completion_tokens = sum(len(done.tokens) for done in completions)


def _card(engine: EngineBase, name: str, policy: bool) -> ModelCard:
    config = engine.model.config
    return ModelCard(
        id=name,
        created=int(time.time()),
        checkpoint=engine.checkpoint_hash or "",
        max_model_len=engine.max_seq_len,
        n_layers=config.n_layers,
        n_gates=config.n_gates,
        learned_gates=None if config.gateless else engine.model.learned_gates().tolist(),
        policy=policy,
        behaviours=behaviour_cards(config),
    )


def check_policy(policy: GatePolicy, checkpoint_hash: str) -> None:
    """Refuses a policy that was trained on other weights: its observations would mean nothing.

    Raises:
        ConfigError: naming both hashes.
    """
    trained_on = policy.config.checkpoint_hash or "unknown"
    if trained_on != checkpoint_hash:
        raise ConfigError(
            f"the gate policy was trained on checkpoint {trained_on}, the served one is "
            f"{checkpoint_hash}; serve that checkpoint or train a policy on this one"
        )
