"""A pool of replica actors that answers every request exactly once.

One loop in the caller's process dispatches, waits and repairs: chunks of requests go to the
least-loaded replica that is up; if an actor dies, fails or passes its deadline, its chunks go back
to the front of the queue and another actor is started in its place. Replicas are stateless between
calls, so doing a chunk again is safe.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from mhc_model.checkpoint import checkpoint_hash
from mhc_model.engines import check_engine
from mhc_model.errors import EngineError, MHCError
from mhc_model.request import Completion, Request
from rl.config import PoolSettings
from rl.replica import Replica, pack_checkpoint

logger = logging.getLogger(__name__)

# Chunks that a replica may hold: one runs, one waits, so that it is never idle between calls.
CHUNKS_PER_REPLICA = 2
# Actors of one slot that may fail to start, one after the other, before the pool gives up.
MAX_FAILED_STARTS = 5


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


@dataclass(eq=False)
class _Chunk:
    """Consecutive requests that travel together; `first` is the position of the first one."""

    first: int
    requests: list[Request]
    attempts: int = 0


@dataclass(eq=False)
class _Slot:
    """A place for one replica: the actor that is there now, and what it was given."""

    index: int
    actor: ActorHandle | None = None
    starting: Any = None  # reference to describe() until the actor is up
    deadline: float = math.inf  # of the start
    failed_starts: int = 0
    pid: int | None = None
    running: dict[Any, tuple[_Chunk, float]] = field(default_factory=dict)  # ref -> chunk, deadline

    @property
    def load(self) -> int:
        return sum(len(chunk.requests) for chunk, _ in self.running.values())

    @property
    def is_up(self) -> bool:
        return self.actor is not None and self.starting is None


class ReplicaPool:
    """N replicas of one checkpoint. Ray must be initialised; one thread uses a pool."""

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
        self._closed = False
        self._files = ray.put(pack_checkpoint(checkpoint))
        self._slots = [_Slot(index) for index in range(settings.replicas)]
        try:
            for slot in self._slots:
                self._start(slot)
            self.wait_until_ready()
        except EngineError:
            self.close()
            raise

    @property
    def pids(self) -> list[int | None]:
        """Process ids of the replicas, None where one is starting."""
        return [slot.pid for slot in self._slots]

    def wait_until_ready(self) -> None:
        """Returns when every replica is up.

        Raises:
            EngineError: if one cannot be started.
        """
        while any(not slot.is_up for slot in self._slots):
            self._wait()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Runs requests on the replicas; completions come in the order of the requests.

        Raises:
            EngineError, GateError: if a request is invalid, there are more than max_queue, one
                failed max_attempts times, or the pool is closed.
        """
        return [result.completion for result in self.run(requests)]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """As `generate`, and says which replica made each completion."""
        if len(requests) > self.settings.max_queue:
            raise EngineError(
                f"{len(requests)} requests in one call; pool.max_queue allows "
                f"{self.settings.max_queue}"
            )
        if self._closed:
            raise EngineError("this pool is closed; make another")
        self.counters.requested += len(requests)
        queue = deque(self._chunks(requests))
        results: dict[int, Result] = {}
        try:
            while len(results) < len(requests):
                self._dispatch(queue)
                for slot, chunk, completions in self._wait(queue):
                    for offset, completion in enumerate(completions):
                        results[chunk.first + offset] = Result(
                            completion, slot.index, chunk.attempts
                        )
        finally:
            self.counters.completed += len(results)
            self.counters.lost += len(requests) - len(results)
            for slot in self._slots:
                slot.running.clear()  # of a call that failed: nobody waits for it any more
        return [results[position] for position in range(len(requests))]

    def close(self) -> None:
        """Ends the replicas; nothing can be asked any more."""
        self._closed = True
        for slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)
            slot.actor = slot.starting = slot.pid = None

    def describe(self) -> dict[str, int]:
        """The counters as plain numbers, for metrics."""
        return asdict(self.counters)

    def _chunks(self, requests: Sequence[Request]) -> list[_Chunk]:
        """Even shares, no larger than what one replica runs at once."""
        share = math.ceil(len(requests) / len(self._slots))
        size = max(1, min(share, self.settings.max_batch))
        return [
            _Chunk(first, list(requests[first : first + size]))
            for first in range(0, len(requests), size)
        ]

    def _dispatch(self, queue: deque[_Chunk]) -> None:
        while queue:
            free = [s for s in self._slots if s.is_up and len(s.running) < CHUNKS_PER_REPLICA]
            if not free:
                return
            slot = min(free, key=lambda candidate: candidate.load)
            chunk = queue.popleft()
            chunk.attempts += 1
            reference = slot.actor.generate.remote(chunk.requests)
            # A chunk may wait for the one before it, so the deadline counts from there.
            ahead = max((deadline for _, deadline in slot.running.values()), default=0.0)
            deadline = max(time.monotonic(), ahead) + self.settings.deadline_s
            slot.running[reference] = (chunk, deadline)
            self.counters.dispatched += len(chunk.requests)

    def _wait(
        self, queue: deque[_Chunk] | None = None
    ) -> list[tuple[_Slot, _Chunk, list[Completion]]]:
        """Waits for something to happen; gives finished chunks and repairs what broke."""
        queue = deque() if queue is None else queue
        events = {reference: slot for slot in self._slots for reference in slot.running}
        events |= {slot.starting: slot for slot in self._slots if slot.starting is not None}
        deadlines = [deadline for slot in self._slots for _, deadline in slot.running.values()]
        deadlines += [slot.deadline for slot in self._slots if slot.starting is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic())
        ready, _ = ray.wait(list(events), num_returns=1, timeout=timeout)
        finished = []
        for reference in ready:
            slot = events[reference]
            if reference == slot.starting:
                self._finish_start(slot)
            elif reference in slot.running:
                done = self._collect(slot, reference, queue)
                finished += [] if done is None else [done]
        now = time.monotonic()
        for slot in self._slots:
            late = slot.starting is not None and slot.deadline <= now
            slot.failed_starts += late
            if late or any(deadline <= now for _, deadline in slot.running.values()):
                self._replace(slot, "it passed its deadline", queue)
        return finished

    def _collect(
        self, slot: _Slot, reference: Any, queue: deque[_Chunk]
    ) -> tuple[_Slot, _Chunk, list[Completion]] | None:
        try:
            completions = ray.get(reference)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, MHCError):  # the request is at fault; no other replica differs
                raise cause from None
            # The process lives but its engine may be in any state: it is not used again.
            self._replace(slot, f"its engine failed: {cause!r}", queue)
            return None
        except RayError as error:
            self._replace(slot, f"{type(error).__name__}", queue)
            return None
        chunk, _ = slot.running.pop(reference)
        return slot, chunk, completions

    def _replace(self, slot: _Slot, reason: str, queue: deque[_Chunk]) -> None:
        """Starts another actor in the slot and puts its unfinished chunks first in the queue."""
        logger.warning("replica %d is replaced: %s", slot.index, reason)
        if slot.actor is not None:
            ray.kill(slot.actor)
        chunks = [chunk for chunk, _ in slot.running.values()]
        slot.running.clear()
        self.counters.restarted += 1
        self._start(slot)
        for chunk in reversed(chunks):
            self.counters.retried += len(chunk.requests)
            queue.appendleft(chunk)
        for chunk in chunks:
            if chunk.attempts >= self.settings.max_attempts:
                raise EngineError(
                    f"{len(chunk.requests)} requests failed on {chunk.attempts} replicas, the last "
                    f"because {reason}; pool.max_attempts allows {self.settings.max_attempts}"
                )

    def _start(self, slot: _Slot) -> None:
        settings = self.settings
        if slot.failed_starts >= MAX_FAILED_STARTS:
            raise EngineError(
                f"replica {slot.index} failed to start {slot.failed_starts} times in a row; see "
                f"the warnings. Does the cluster have {settings.cpus_per_replica:g} CPUs and "
                f"{settings.gpus_per_replica:g} GPUs for each of {settings.replicas} replicas?"
            )
        actor_class = ray.remote(Replica).options(
            num_cpus=settings.cpus_per_replica,
            num_gpus=settings.gpus_per_replica,
            max_restarts=0,  # restarts are this pool's: it must know what was lost
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(settings.threads)}},
        )
        device = "cuda" if settings.gpus_per_replica else "cpu"
        slot.actor = actor_class.remote(
            self._files, settings.max_batch, settings.threads, device, settings.engine
        )
        slot.starting = slot.actor.describe.remote()
        slot.deadline = time.monotonic() + settings.start_deadline_s
        slot.pid = None

    def _finish_start(self, slot: _Slot) -> None:
        try:
            content_hash, pid = ray.get(slot.starting)
        except RayError as error:  # its constructor raised, or its environment cannot be made
            slot.failed_starts += 1
            logger.warning("replica %d did not start: %s", slot.index, error)
            self._start(slot)
            return
        if content_hash != self.checkpoint_hash:
            raise EngineError(
                f"replica {slot.index} holds checkpoint {content_hash}, the pool was made for "
                f"{self.checkpoint_hash}"
            )
        slot.starting, slot.pid, slot.failed_starts = None, pid, 0
