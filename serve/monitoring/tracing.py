"""Gives every HTTP request an id and a record: an ASGI middleware around everything else."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.basics import request_id_of
from serve.errors import CLIENT_CLOSED_REQUEST
from serve.monitoring.observer import Observer, Outcome, RequestRecord

_OUTCOMES: dict[int, Outcome] = {
    429: "overloaded",
    CLIENT_CLOSED_REQUEST: "cancelled",
    503: "unavailable",
    504: "timeout",
}


class RequestTrace:
    """What is learned about a request on its way; becomes its `RequestRecord`.

    Attributes:
        id: sent as x-request-id.
        samples, prompt_tokens, completion_tokens, cached_tokens: as in `RequestRecord`; set by the
            service.
        ttft_s: as there; set with `first_token`.
        status: of the response, once it has begun.
        failure: status of an error that came after that.
    """

    def __init__(self, scope: Scope, observer: Observer) -> None:
        self.id = request_id_of(scope["headers"])
        self.samples = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._gates: dict[str, Any] = {}
        self.ttft_s: float | None = None
        self.status: int | None = None
        self.failure: int | None = None
        self._scope = scope
        self._observer = observer
        self._started = time.perf_counter()

    @property
    def route(self) -> str:
        """Path template of the route; "unknown" until one is found."""
        return getattr(self._scope.get("route"), "path", "unknown")

    def used_gates(self, gates_hash: str | None, labels: Mapping[str, str | None]) -> None:
        """The gates are known.

        Args:
            gates_hash: as in `RequestRecord`.
            labels: where they come from; its fields `gates_source` to `answer_behaviour`.
        """
        self._gates = {"gates_hash": gates_hash, **labels}

    def accepted(self, samples: int) -> None:
        """The engine has queued the request."""
        self.samples = samples
        self._observer.accepted(self.id, self.route, samples)

    def first_token(self, at: float) -> None:
        """The first token is there; later calls change nothing.

        Args:
            at: time.perf_counter() of that moment.
        """
        if self.ttft_s is None:
            self.ttft_s = at - self._started
            self._observer.first_token(self.id, self.route, self.ttft_s)

    def finish(self) -> None:
        """The response has ended."""
        status = CLIENT_CLOSED_REQUEST if self.status is None else self.status
        self._observer.finished(
            RequestRecord(
                id=self.id,
                route=self.route,
                samples=self.samples,
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.completion_tokens,
                cached_tokens=self.cached_tokens,
                **self._gates,
                ttft_s=self.ttft_s,
                total_s=time.perf_counter() - self._started,
                outcome=_outcome(self.failure or status),
                status=status,
            )
        )


class Tracing:
    """The middleware. It must see every response, also the 500 of an unexpected exception."""

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = RequestTrace(scope, self._observer)
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["trace"] = trace
        header = (b"x-request-id", trace.id.encode())

        async def send_traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        try:
            await self._app(scope, receive, send_traced)
        finally:
            trace.finish()


def trace_of(request: Request) -> RequestTrace:
    """The trace that `Tracing` made for a request."""
    trace: RequestTrace = request.state.trace
    return trace


def _outcome(status: int) -> Outcome:
    if status < 400:
        return "ok"
    return _OUTCOMES.get(status, "refused" if status < 500 else "error")
