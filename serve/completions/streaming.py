"""Server-sent events of one request."""

from __future__ import annotations

import json
import time

from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mhc_model.engine import Delta
from mhc_model.errors import MHCError
from serve.completions.batcher import Event
from serve.completions.calls import EngineCall, on_disconnect
from serve.completions.responses import ResponseWriter
from serve.errors import CLIENT_CLOSED_REQUEST, as_api_error
from serve.monitoring import RequestTrace


class EventStream(Response):
    """`data: {chunk}` events, then `data: [DONE]`.

    The response begins with the first event of the engine, so that what fails before it has its
    own HTTP status. What fails later is an event `data: {"error": ...}`, the last one.
    """

    media_type = "text/event-stream"

    def __init__(self, call: EngineCall, writer: ResponseWriter, trace: RequestTrace) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]  # of the empty body that `super` knows
        self._call = call
        self._writer = writer
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._call:
            async with on_disconnect(receive, self._call.leave):
                events = await anext(self._call)
                try:
                    await self._send(events, send)
                except (ClientDisconnect, OSError):  # OSError: the HTTP server noticed first
                    self._trace.failure = CLIENT_CLOSED_REQUEST

    async def _send(self, events: list[Event], send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        try:
            await self._send_events(events, send)
            async for events in self._call:
                await self._send_events(events, send)
            ending = self._writer.end()
        except MHCError as error:
            failure = as_api_error(error)
            self._trace.failure = failure.status
            ending = f"data: {json.dumps(failure.envelope())}\n\n"
        self._trace.cached_tokens = self._writer.cached_tokens
        await send({"type": "http.response.body", "body": ending.encode(), "more_body": False})

    async def _send_events(self, events: list[Event], send: Send) -> None:
        for event in events:
            if isinstance(event, Delta):
                self._trace.completion_tokens += len(event.tokens)
        if self._trace.ttft_s is None and any(map(_has_tokens, events)):
            self._trace.first_token(time.perf_counter())
        body = self._writer.chunks(events).encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _has_tokens(event: Event) -> bool:
    return bool(event.tokens or (isinstance(event, Delta) and event.text))
