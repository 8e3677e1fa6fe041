"""One thread that drives the engine, so that concurrent HTTP calls share one running batch.

Whoever holds a future waits on it and never blocks the thread; the thread owns the engine, so
nothing else may call it: `run` is how others do. Five rules keep callers safe:

- a call's samples are accepted together or refused together
- cancelling the future frees the call's rows at the next step
- if the engine fails, every future gets the error, and later calls are refused: nobody hangs
- an engine whose step does not end counts as failed, so that somebody replaces it
- closing finishes what was accepted, up to a limit; from then on calls are refused
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from mhc_model.engine import Completion, Delta, EngineBase, EngineStats, Request
from mhc_model.errors import EngineError, GateError
from serve.errors import overloaded, unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")
Event = Delta | Completion

LOAD_INTERVAL_S = 0.1
# A step that is under way when the time to finish is over still has to end.
STEP_S = 10.0
_REPLACED = "the replica is being replaced"
SHUTTING_DOWN = "the server is shutting down; try again, another replica will answer"


class Sink(Protocol):
    """Takes what a call's samples gain.

    Attributes:
        loop: the event loop in whose thread `put` is called.
    """

    loop: asyncio.AbstractEventLoop

    def put(self, events: list[Event]) -> None:
        """What one step gave, deltas before the completions that they belong to."""


def post_to_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any
) -> bool:
    """Runs a function on a loop's thread; False if the loop has ended, and its clients with it."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # asyncio's word for a closed loop
        return False
    return True


def _put_all(batch: Sequence[tuple[_Call, list[Event]]]) -> None:
    for call, events in batch:
        if call.sink is not None:
            call.sink.put(events)


@dataclass(frozen=True, eq=False)
class _Call:
    """The requests of one HTTP call and what they have become."""

    requests: tuple[Request, ...]
    future: Future[list[Completion]]
    sink: Sink | None
    done: dict[tuple[str, int], Completion] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(request.n for request in self.requests)

    def resolve(self) -> None:
        # False if the caller has cancelled; from here on it cannot.
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(
                [self.done[r.id, index] for r in self.requests for index in range(r.n)]
            )

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Job:
    """A function to run between two steps."""

    function: Callable[[EngineBase], Any]
    future: Future[Any]

    def run(self, engine: EngineBase) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.function(engine)
        except Exception as error:  # the caller's to handle; the engine goes on
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Batcher:
    """Continuous batching for many callers; see the module's docstring."""

    def __init__(
        self,
        engine: EngineBase,
        max_queue: int,
        on_load: Callable[[EngineStats, int], None] | None = None,
        stall_s: float = math.inf,
    ) -> None:
        """Starts the thread.

        Args:
            engine: owned by the thread from now on.
            max_queue: samples that may wait besides the `engine.max_batch` that have a row.
            on_load: hears of the load as `serve.monitoring.Observer.load` says.
            stall_s: seconds that a step, or a function of `run`, may take.
        """
        self._engine = engine
        self._capacity = engine.max_batch + max_queue
        self._on_load = on_load
        self._load_told = 0.0
        self._stall_s = stall_s
        self._busy_since: float | None = None  # time.monotonic(); None while it waits for work
        # None: look at _cancelled and _close_at
        self._inbox: SimpleQueue[_Call | _Job | None] = SimpleQueue()
        self._calls: dict[str, _Call] = {}  # by request id; the thread's own
        self._lock = threading.Lock()  # of the fields below
        self._pending = 0
        self._cancelled: list[_Call] = []
        self._close_at: float | None = None  # time.monotonic(); None while calls are accepted
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """Samples that are accepted at a time, decoding and waiting."""
        return self._capacity

    @property
    def failure(self) -> str | None:
        """Why the engine does not run; None while it does, and again if a step ends after all."""
        failure, since = self._failure, self._busy_since
        if failure is None and not self._thread.is_alive() and self._close_at is None:
            return f"the engine's thread has ended; {_REPLACED}"
        if failure is None and since is not None and time.monotonic() - since > self._stall_s:
            return f"no step of the engine has ended for {self._stall_s:g} s; {_REPLACED}"
        return failure

    @property
    def refusal(self) -> str | None:
        """Why no call would be accepted now; None if one sample would."""
        with self._lock:
            if self.failure is not None or self._close_at is not None:
                return self.failure or SHUTTING_DOWN
            if self._pending >= self._capacity:
                return f"the server holds {self._capacity} samples and takes no more now"
            return None

    @property
    def active(self) -> int:
        """Samples that hold a row of the batch."""
        return self._engine.active

    @property
    def pending(self) -> int:
        """Samples accepted and not finished."""
        return self._pending

    def submit(
        self, requests: Sequence[Request], sink: Sink | None = None
    ) -> Future[list[Completion]]:
        """Queues the requests of one call.

        Args:
            requests: of one call; those with `stream` also give deltas.
            sink: gets every delta and completion as it comes, all before the future ends.

        Returns:
            A future of the completions in the order of requests, then of samples; it raises
            `EngineError` or `GateError` where the engine refuses one of the requests.

        Raises:
            APIError: 429 if they do not fit into the queue now, 503 if the engine does not run.
        """
        future: Future[list[Completion]] = Future()
        call = _Call(tuple(requests), future, sink)
        self._accept(call, call.samples)

        def release(done: Future[list[Completion]]) -> None:  # in whichever thread ended it
            with self._lock:
                self._pending -= call.samples
                if done.cancelled():
                    self._cancelled.append(call)
                    self._inbox.put(None)

        future.add_done_callback(release)
        return future

    def run(self, function: Callable[[EngineBase], T]) -> Future[T]:
        """Runs a function on the engine's thread, between two steps; it counts as one sample.

        Args:
            function: must be quick: everybody waits for it. What it raises, the future raises.

        Raises:
            APIError: as `submit`.
        """
        future: Future[T] = Future()
        self._accept(_Job(function, future), 1)

        def release(done: Future[T]) -> None:
            with self._lock:
                self._pending -= 1

        future.add_done_callback(release)
        return future

    def close(self, drain_s: float = 0.0) -> None:
        """Refuses new calls, finishes the accepted ones and ends the thread; may be called again.

        Args:
            drain_s: seconds for what was accepted; what is not done by then fails with a 503.
        """
        with self._lock:
            at = time.monotonic() + drain_s
            self._close_at = at if self._close_at is None else min(at, self._close_at)
        self._inbox.put(None)
        if self._failure is None and self.failure is not None:
            return  # a step that has not ended for so long will not now
        self._thread.join(drain_s + STEP_S)

    def _accept(self, item: _Call | _Job, samples: int) -> None:
        with self._lock:
            if self.failure is not None or self._close_at is not None:
                raise unavailable(self.failure or SHUTTING_DOWN)
            if self._pending + samples > self._capacity:
                raise overloaded(self._capacity)
            self._pending += samples
            self._inbox.put(item)

    def _run(self) -> None:
        reason = SHUTTING_DOWN
        try:
            while not self._is_over():
                self._take_messages()
                if self._engine.has_work:
                    self._step()
        except Exception as error:  # the end of the thread: every waiting caller must hear of it
            logger.exception("the engine failed")
            reason = f"the engine failed ({type(error).__name__}); {_REPLACED}"
        self._fail_all(reason)

    def _is_over(self) -> bool:
        close_at = self._close_at
        if close_at is None:
            return False
        idle = not self._engine.has_work and self._inbox.empty()
        return idle or time.monotonic() >= close_at

    def _step(self) -> None:
        self._busy_since = time.monotonic()
        completions = self._engine.step()
        events: list[Event] = [*self._engine.take_deltas(), *completions]
        gained: dict[_Call, list[Event]] = {}
        for event in events:
            call = self._calls.get(event.request_id)
            if call is not None:  # else it was withdrawn
                gained.setdefault(call, []).append(event)
        self._post(gained)
        for call, its_events in gained.items():
            self._finish(call, its_events)
        now = time.monotonic()
        if not self._engine.has_work or now - self._load_told >= LOAD_INTERVAL_S:
            self._tell_load(now)

    def _post(self, gained: dict[_Call, list[Event]]) -> None:
        """One message a loop and step: waking a loop costs more than a token's bookkeeping."""
        batches: dict[asyncio.AbstractEventLoop, list[tuple[_Call, list[Event]]]] = {}
        for call, events in gained.items():
            if call.sink is not None:
                batches.setdefault(call.sink.loop, []).append((call, events))
        for loop, batch in batches.items():
            if not post_to_loop(loop, _put_all, batch):
                for call, _ in batch:
                    call.future.cancel()

    def _finish(self, call: _Call, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Completion):
                call.done[event.request_id, event.index] = event
        if len(call.done) == call.samples:
            for request in call.requests:
                del self._calls[request.id]
            call.resolve()

    def _tell_load(self, now: float) -> None:
        self._load_told = now
        if self._on_load is not None:
            self._on_load(self._engine.stats(), self._pending)

    def _take_messages(self) -> None:
        """Admits what has arrived and drops cancelled calls; waits if there is no work."""
        wait = not self._engine.has_work
        try:
            while True:
                if wait:
                    self._busy_since = None
                item = self._inbox.get(block=wait)
                self._busy_since = time.monotonic()
                wait = False
                if isinstance(item, _Job):
                    item.run(self._engine)
                elif item is not None:
                    self._admit(item)
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

    def _fail_all(self, reason: str) -> None:
        with self._lock:
            self._failure = reason  # from here on nothing is accepted
        items: set[_Call | _Job] = set(self._calls.values())
        self._calls.clear()
        while not self._inbox.empty():
            item = self._inbox.get()
            if item is not None:
                items.add(item)
        for item in items:
            item.fail(unavailable(reason))
