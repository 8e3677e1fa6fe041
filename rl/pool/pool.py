"""A pool of replica actors that answers every request exactly once.

A thread dispatches, waits and repairs, so a pool works on while its callers do something else.
Requests go one by one to the least-loaded replica that is up and join its running batch; if an
actor dies, fails or passes its deadline, what it held goes back to the front of the queue and
another actor is started in its place. Replicas keep nothing between requests, so doing one again
is safe.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import ray

from mhc_model.checkpoint import checkpoint_hash
from mhc_model.engine import Completion, Engine, Request
from mhc_model.engines import check_engine
from mhc_model.errors import EngineError
from rl.config import PoolSettings
from rl.pool.replica import pack_checkpoint
from rl.pool.replica_set import Events, ReplicaSet, Ticket, start_failure

logger = logging.getLogger(__name__)

# Seconds after which the thread looks for new calls while it waits for replicas, and while idle.
POLL_S = 0.05
IDLE_S = 0.5
CLOSED = "this pool is closed; make another"


class Result(NamedTuple):
    """A completion and who made it."""

    completion: Completion
    replica: int
    attempts: int


@dataclass
class Counters:
    """Requests and replicas since the pool began. `lost` counts requests of calls that failed."""

    requested: int = 0
    dispatched: int = 0
    completed: int = 0
    retried: int = 0
    restarted: int = 0
    lost: int = 0
    grown: int = 0
    shrunk: int = 0

    def going_on_from(self, saved: Mapping[str, int]) -> Counters:
        """Adds those of the run that this one resumes. What was under way then is asked again."""
        before = Counters(**saved)
        before.requested = before.completed + before.lost
        own, earlier = asdict(self), asdict(before)
        return Counters(**{name: own[name] + earlier[name] for name in own})


class Usage(NamedTuple):
    """Seconds since the pool began, for each slot: of work, and of being up."""

    busy_s: dict[int, float]
    up_s: dict[int, float]

    def since(self, earlier: Usage) -> Usage:
        """What came after an earlier reading."""
        return Usage(
            {slot: busy - earlier.busy_s.get(slot, 0.0) for slot, busy in self.busy_s.items()},
            {slot: up - earlier.up_s.get(slot, 0.0) for slot, up in self.up_s.items()},
        )

    @property
    def utilisation(self) -> float:
        """Share of their time in which the replicas worked; 0 where none was up."""
        up = sum(self.up_s.values())
        return min(1.0, sum(self.busy_s.values()) / up) if up > 0 else 0.0

    @property
    def by_slot(self) -> dict[int, float]:
        """The same for each slot that was up."""
        return {slot: min(1.0, self.busy_s[slot] / up) for slot, up in self.up_s.items() if up > 0}


class _Call:
    """The requests of one call and what they have become."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.future: Future[list[Result]] = Future()
        self.future.set_running_or_notify_cancel()  # it cannot be cancelled
        self.done: dict[tuple[int, int], Result] = {}
        self.missing = sum(request.n for request in requests)

    def put(self, ticket: Ticket, completion: Completion, replica: int) -> None:
        named = replace(completion, request_id=self.requests[ticket.position].id)
        self.done[ticket.position, completion.index] = Result(named, replica, ticket.attempts)
        self.missing -= 1

    def results(self) -> list[Result]:
        return [
            self.done[position, index]
            for position, request in enumerate(self.requests)
            for index in range(request.n)
        ]


class LocalPool:
    """What `Asker` needs of a pool."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """As `ReplicaPool.run`."""
        return [Result(completion, 0, 1) for completion in self.engine.generate(requests)]


class ReplicaPool:
    """Replicas of one checkpoint. Ray must be initialised; any thread may call."""

    def __init__(self, checkpoint: str | Path, settings: PoolSettings) -> None:
        """Starts the replicas and waits until all of them hold the checkpoint.

        Raises:
            CheckpointError: if the checkpoint is not whole.
            ConfigError: if the engine is vLLM and not installed.
            EngineError: if replicas cannot be started, or hold another checkpoint.
        """
        self.settings = settings
        check_engine(settings.engine)
        self.checkpoint_hash = checkpoint_hash(checkpoint)
        self.counters = Counters()
        self._names = itertools.count()
        self._queue: deque[Ticket] = deque()  # the thread's own
        self._hungry_since: float | None = None  # since when requests wait
        # The fields below are everybody's, under this lock.
        self._changed = threading.Condition()
        self._calls: set[_Call] = set()
        self._inbox: list[Ticket] = []
        self._waiting = 0  # requests in inbox and queue
        self._closing = False
        self._failure: EngineError | None = None
        self._set = ReplicaSet(
            ray.put(pack_checkpoint(checkpoint)), self.checkpoint_hash, lambda: self.settings
        )
        self._thread = threading.Thread(target=self._run, name="replica-pool", daemon=True)
        self._thread.start()
        try:
            self.wait_until_ready()
        except EngineError:
            self.close()
            raise

    @property
    def pids(self) -> list[int | None]:
        """Process ids of the replicas, None where one is starting."""
        return [slot.pid for slot in self._set.slots]

    @property
    def nodes(self) -> list[str | None]:
        """Ids of the nodes that the replicas are on, None where one is starting."""
        return [slot.node for slot in self._set.slots]

    @property
    def queued(self) -> int:
        """Requests that no replica holds yet."""
        return self._waiting

    def wait_until_ready(self) -> None:
        """Returns when every replica is up.

        Raises:
            EngineError: if one cannot be started, or the pool is closed.
        """
        with self._changed:
            while not all(slot.is_up for slot in self._set.slots):
                failure = self._failure or start_failure(self._set.slots, self.settings)
                if failure is not None or self._closing:
                    raise failure or EngineError(CLOSED)
                self._changed.wait(POLL_S)
            if self._failure is not None:
                raise self._failure

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Runs requests on the replicas; completions come in the order of the requests.

        Raises:
            EngineError, GateError: if a request is invalid, there are more than max_queue, one
                failed max_attempts times, or the pool is closed.
        """
        return [result.completion for result in self.run(requests)]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """As `generate`, and says which replica made each completion."""
        return self.submit(requests).result()

    def submit(self, requests: Sequence[Request]) -> Future[list[Result]]:
        """As `run`, without waiting for the results; the future raises what `run` would.

        Waits while the queue is full of other calls' requests.

        Raises:
            EngineError: if there are more than max_queue, or the pool is closed or has failed.
        """
        limit = self.settings.max_queue
        if len(requests) > limit:
            raise EngineError(
                f"{len(requests)} requests in one call; pool.max_queue allows {limit}"
            )
        call = _Call(requests)
        with self._changed:
            while self._waiting and self._waiting + len(requests) > limit and not self._closing:
                self._changed.wait()
            if self._closing:
                raise self._failure or EngineError(CLOSED)
            self.counters.requested += len(requests)
            if not requests:
                call.future.set_result([])
                return call.future
            self._calls.add(call)
            self._waiting += len(requests)
            self._inbox += [
                Ticket(call, position, replace(request, id=str(next(self._names))))
                for position, request in enumerate(requests)
            ]
            self._changed.notify_all()
        return call.future

    def close(self) -> None:
        """Ends the replicas; nothing can be asked any more, and calls under way fail."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def describe(self) -> dict[str, int]:
        """The counters as plain numbers, for metrics."""
        return asdict(self.counters)

    def usage(self) -> Usage:
        """How long the replicas have worked and have been up."""
        usage = self._set.usage()
        return Usage(
            {slot: busy for slot, (busy, _) in usage.items()},
            {slot: up for slot, (_, up) in usage.items()},
        )

    # The thread

    def _run(self) -> None:
        failure = EngineError(CLOSED)
        try:
            while self._take_calls():
                self._resize()
                self._dispatch()
                self._handle(self._set.poll(POLL_S))
                self._check_starts()
        except EngineError as error:
            failure = self._failure = error
        except Exception as error:  # the end of the thread: every waiting caller must hear of it
            logger.exception("the pool failed")
            failure = self._failure = EngineError(f"the pool failed: {error!r}")
        finally:
            self._end(failure)

    def _end(self, failure: EngineError) -> None:
        with self._changed:
            self._closing = True
            calls, self._calls = self._calls, set()
            self._changed.notify_all()
        for call in calls:
            self._fail(call, failure)
        if ray.is_initialized():
            self._set.close()

    def _take_calls(self) -> bool:
        """Moves new requests into the queue; waits where nothing is to do. False at the end."""
        with self._changed:
            if not (self._inbox or self._queue or self._closing) and self._set.is_quiet:
                self._changed.wait(IDLE_S)
            self._queue += self._inbox
            self._inbox = []
            return not self._closing

    def _resize(self) -> None:
        """More replicas while requests wait, fewer when some have been idle, within the bounds."""
        settings, now = self.settings, time.monotonic()
        if not self._queue:
            self._hungry_since = None
        elif self._hungry_since is None:
            self._hungry_since = now
        count = len(self._set.slots)
        least, most = settings.replicas, settings.max_replicas or settings.replicas
        if self._hungry_since is not None and now - self._hungry_since >= settings.grow_after_s:
            load = sum(slot.load for slot in self._set.slots)
            load += sum(ticket.request.n for ticket in self._queue)
            wanted = min(most, math.ceil(load / settings.max_batch))
            if wanted > count:
                logger.info("%d requests wait: %d replicas", len(self._queue), wanted)
                self._set.resize(wanted)
                self.counters.grown += wanted - count
        elif count > least and self._set.idle_for(now) >= settings.idle_s:
            self._set.resize(count - 1)
            self.counters.shrunk += count - len(self._set.slots)

    def _dispatch(self) -> None:
        sent = 0
        while self._queue and self._set.take(self._queue[0]):
            self._queue.popleft()
            sent += 1
        self.counters.dispatched += sent
        self._add_waiting(-sent)

    def _handle(self, events: Events) -> None:
        for ticket, completion, replica in events.finished:
            call: _Call = ticket.call
            if call.future.done():
                continue
            if ticket.request.n == 1:
                call.put(ticket, completion, replica)
                self.counters.completed += 1
            elif len(ticket.samples) == ticket.request.n:  # whole, or made again elsewhere
                for sample in ticket.samples:
                    call.put(ticket, sample, replica)
                ticket.samples = []
                self.counters.completed += 1
            if call.missing == 0:
                self._calls.discard(call)
                call.future.set_result(call.results())
        for ticket, error in events.refused:
            self._fail(ticket.call, error)
        self.counters.restarted += events.restarted
        self._take_back(events)

    def _take_back(self, events: Events) -> None:
        """Puts what a replaced replica held first in the queue, unless it was tried too often."""
        tries = self.settings.max_attempts
        for ticket in events.returned:
            if ticket.attempts >= tries:
                message = (
                    f"a request failed on {ticket.attempts} replicas; at last {events.reason}; "
                    f"pool.max_attempts allows {tries}"
                )
                self._fail(ticket.call, EngineError(message))
        again = [ticket for ticket in events.returned if not ticket.call.future.done()]
        self._queue.extendleft(reversed(again))
        self.counters.retried += len(again)
        self._add_waiting(len(again))

    def _check_starts(self) -> None:
        """Raises the error of replicas that cannot be started, once none is left that works."""
        if not any(slot.is_up for slot in self._set.slots) and self._calls:
            failure = start_failure(self._set.slots, self.settings)
            if failure is not None:
                raise failure

    def _fail(self, call: _Call, error: Exception) -> None:
        """Ends a call with an error and withdraws what is left of it."""
        if call.future.done():
            return
        self._calls.discard(call)
        self._set.drop(call)
        kept = [ticket for ticket in self._queue if ticket.call is not call]
        self._add_waiting(len(kept) - len(self._queue))
        self._queue = deque(kept)
        positions = {position for position, _ in call.done}
        self.counters.lost += len(call.requests) - len(positions)
        call.future.set_exception(error)

    def _add_waiting(self, count: int) -> None:
        if count:
            with self._changed:
                self._waiting += count
                self._changed.notify_all()
