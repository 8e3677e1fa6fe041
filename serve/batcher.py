"""One thread that drives the engine, so that concurrent HTTP calls share one running batch.

Whoever holds a future waits on it (asyncio through `asyncio.wrap_future`) and never blocks the
thread; the thread owns the engine, so nothing else may call it. Three rules keep callers safe:

- a call's prompts are accepted together or refused together
- cancelling the future frees the call's rows at the next step
- if the engine fails, every future gets the error, and later calls are refused: nobody hangs
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from mhc_model.engine import Engine
from mhc_model.errors import EngineError, GateError
from mhc_model.request import Completion, Request
from serve.errors import overloaded, unavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Call:
    """The prompts of one HTTP request and what they have become."""

    requests: tuple[Request, ...]
    future: Future[list[Completion]]
    done: dict[str, Completion] = field(default_factory=dict)

    def resolve(self) -> None:
        # False if the caller has cancelled; from here on it cannot.
        if self.future.set_running_or_notify_cancel():
            self.future.set_result([self.done[request.id] for request in self.requests])

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Batcher:
    """Continuous batching for many callers; see the module's docstring."""

    def __init__(self, engine: Engine, max_queue: int) -> None:
        """Starts the thread.

        Args:
            engine: owned by the thread from now on.
            max_queue: prompts that may wait besides the `engine.max_batch` that have a row.
        """
        self._engine = engine
        self._capacity = engine.max_batch + max_queue
        self._inbox: SimpleQueue[_Call | None] = SimpleQueue()  # None: look at _cancelled, _closed
        self._calls: dict[str, _Call] = {}  # by request id; the thread's own
        self._lock = threading.Lock()  # of the fields below
        self._pending = 0
        self._cancelled: list[_Call] = []
        self._closed = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """Prompts that are accepted at a time, decoding and waiting."""
        return self._capacity

    @property
    def failure(self) -> str | None:
        """Why the engine no longer runs; None while it does."""
        return self._failure

    @property
    def active(self) -> int:
        """Prompts that hold a row of the batch."""
        return self._engine.active

    @property
    def pending(self) -> int:
        """Prompts accepted and not finished."""
        return self._pending

    def submit(self, requests: Sequence[Request]) -> Future[list[Completion]]:
        """Queues the prompts of one call.

        Returns:
            A future of the completions, in order; it raises `EngineError` or `GateError` where the
            engine refuses one of the requests.

        Raises:
            APIError: 429 if they do not fit into the queue now, 503 if the engine does not run.
        """
        future: Future[list[Completion]] = Future()
        call = _Call(tuple(requests), future)
        with self._lock:
            if self._failure is not None:
                raise unavailable(self._failure)
            if self._pending + len(call.requests) > self._capacity:
                raise overloaded(self._capacity)
            self._pending += len(call.requests)
            self._inbox.put(call)
        future.add_done_callback(lambda done: self._on_done(call))
        return future

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends the thread; calls under way fail with a 503. May be called again."""
        with self._lock:
            self._closed = True
        self._inbox.put(None)
        self._thread.join(timeout_s)

    def _on_done(self, call: _Call) -> None:
        """Runs in whichever thread ended the future."""
        with self._lock:
            self._pending -= len(call.requests)
            if call.future.cancelled():
                self._cancelled.append(call)
                self._inbox.put(None)

    def _run(self) -> None:
        reason = "the server is shutting down"
        try:
            while not self._closed:
                self._take_messages()
                if self._engine.has_work:
                    for completion in self._engine.step():
                        self._deliver(completion)
        except Exception as error:  # the end of the thread: every waiting caller must hear of it
            logger.exception("the engine failed")
            reason = f"the engine failed ({type(error).__name__}); the replica is being replaced"
        self._fail_all(reason)

    def _take_messages(self) -> None:
        """Admits calls that have arrived and drops cancelled ones; waits if there is no work."""
        wait = not self._engine.has_work
        try:
            while True:
                call = self._inbox.get(block=wait)
                wait = False
                if call is not None:
                    self._admit(call)
        except Empty:
            pass
        with self._lock:
            cancelled, self._cancelled = self._cancelled, []
        for call in cancelled:
            self._withdraw(call)

    def _admit(self, call: _Call) -> None:
        if call.future.cancelled():
            return
        try:
            for request in call.requests:
                self._engine.add(request)
                self._calls[request.id] = call
        except (EngineError, GateError) as error:
            self._withdraw(call)
            call.fail(error)

    def _withdraw(self, call: _Call) -> None:
        for request in call.requests:
            if self._calls.pop(request.id, None) is not None:
                self._engine.cancel(request.id)

    def _deliver(self, completion: Completion) -> None:
        call = self._calls.pop(completion.request_id, None)
        if call is None:  # withdrawn
            return
        call.done[completion.request_id] = completion
        if len(call.done) == len(call.requests):
            call.resolve()

    def _fail_all(self, reason: str) -> None:
        with self._lock:
            self._failure = reason  # from here on submit() refuses
        calls = set(self._calls.values())
        self._calls.clear()
        while not self._inbox.empty():
            call = self._inbox.get()
            if call is not None:
                calls.add(call)
        for call in calls:
            call.fail(unavailable(reason))
