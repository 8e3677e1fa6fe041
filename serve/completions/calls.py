"""One call to the batcher as a coroutine sees it: its events, its deadline, its client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from starlette.requests import ClientDisconnect

from mhc_model.engine import Completion, Request
from serve.completions.batcher import Batcher, Event, post_to_loop
from serve.errors import timed_out

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class EngineCall:
    """Queued by its constructor; iterate it for what each step gives.

    Iteration ends when all samples have ended. It raises what ended the call early: `APIError`
    (503 if the engine fails, 504 past the deadline), `EngineError` or `GateError` if the engine
    refuses a request, `ClientDisconnect` after `leave`. Leaving the context before the end frees
    the call's rows. For the event loop's thread only.
    """

    def __init__(self, batcher: Batcher, requests: Sequence[Request], timeout_s: float) -> None:
        """Queues the requests.

        Args:
            batcher: runs them.
            requests: of one HTTP request.
            timeout_s: seconds until the call is cancelled.

        Raises:
            APIError: 429 or 503, as `Batcher.submit`.
        """
        self.submitted = time.perf_counter()
        self.loop = asyncio.get_running_loop()
        self._events: list[Event] = []  # not yet taken
        self._over = False
        self._error: BaseException | None = None
        self._wake = asyncio.Event()
        self._future = batcher.submit(requests, self)
        self._timer = self.loop.call_later(timeout_s, self._cancel, timed_out(timeout_s))
        self._future.add_done_callback(self._on_done)

    def __enter__(self) -> EngineCall:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self._future.cancel()

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        """All that came since the last call, one step's or several steps' in order."""
        await self._wake.wait()
        if self._error is not None:
            raise self._error
        if not self._events:
            raise StopAsyncIteration
        if not self._over:
            self._wake.clear()
        events, self._events = self._events, []
        return events

    def put(self, events: list[Event]) -> None:
        """Takes what a step gave."""
        self._events += events
        self._wake.set()

    def leave(self) -> None:
        """The client has gone."""
        self._cancel(ClientDisconnect())

    def _cancel(self, error: Exception) -> None:
        if self._future.cancel():
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self._over = True
        self._error = error
        self._wake.set()

    def _on_done(self, future: Future[list[Completion]]) -> None:
        """On the engine's thread, after the last events were posted; whoever cancels says why."""
        if not future.cancelled():
            post_to_loop(self.loop, self._end, future.exception())


@asynccontextmanager
async def on_disconnect(receive: Receive, leave: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `leave` if the client goes away within; the request's body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        await asyncio.wait([watcher])
