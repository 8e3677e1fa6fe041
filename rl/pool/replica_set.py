"""The actors of a pool: started, given work, watched, replaced, and more or fewer as asked.

One thread drives a set. It knows requests only as tickets that a replica holds; what becomes of
those that come back, the pool decides.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from mhc_model.engine import Completion, Request
from mhc_model.errors import EngineError, MHCError
from rl.config import PoolSettings
from rl.pool.replica import Replica, Report

logger = logging.getLogger(__name__)

# Exchanges under way with a replica: one runs, one waits, so that it is never idle between them.
EXCHANGES = 2
# Samples that wait at a replica, as a share of its rows, for the rows that become free in a slice.
AHEAD = 0.25
# Actors of one slot that may fail to start, one after the other, before that counts as its state.
MAX_FAILED_STARTS = 5
LONGEST_PAUSE_S = 30.0
DEADLINES_EVERY_S = 0.1


@dataclass(eq=False)
class Ticket:
    """One request under way. `request.id` is the ticket's own name; `call` is the pool's."""

    call: Any
    position: int
    request: Request
    attempts: int = 0
    deadline: float = math.inf
    samples: list[Completion] = field(default_factory=list)


@dataclass(eq=False)
class Slot:
    """A place for one replica: the actor that is there now, and what it was given."""

    index: int
    actor: ActorHandle | None = None
    starting: Any = None  # reference to describe() until the actor is up
    deadline: float = math.inf  # of the start
    start_at: float = 0.0  # not before that
    failed_starts: int = 0
    pid: int | None = None
    node: str | None = None
    held: dict[str, Ticket] = field(default_factory=dict)
    load: int = 0  # samples that it holds
    outbox: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    exchanges: list[Any] = field(default_factory=list)
    up_since: float = 0.0
    busy_s: float = 0.0  # of this actor
    idle_since: float = 0.0

    @property
    def is_up(self) -> bool:
        return self.actor is not None and self.starting is None


@dataclass
class Events:
    """What a poll brought.

    Attributes:
        finished: tickets with a sample that ended, and the replica.
        refused: tickets whose request the engine does not take, and why.
        returned: tickets of replaced replicas, in the order in which they were given.
        restarted: replicas that were replaced.
        reason: why the last of them was.
    """

    finished: list[tuple[Ticket, Completion, int]] = field(default_factory=list)
    refused: list[tuple[Ticket, MHCError]] = field(default_factory=list)
    returned: list[Ticket] = field(default_factory=list)
    restarted: int = 0
    reason: str = ""


class ReplicaSet:
    """Slots for replicas of one checkpoint."""

    def __init__(
        self, files: Any, checkpoint_hash: str, settings: Callable[[], PoolSettings]
    ) -> None:
        """Starts the replicas, without waiting for them.

        Args:
            files: reference to the packed checkpoint.
            checkpoint_hash: that all replicas must hold.
            settings: gives the present settings.
        """
        self._files = files
        self._checkpoint_hash = checkpoint_hash
        self._settings = settings
        self.slots: list[Slot] = []
        self._past_s: dict[int, tuple[float, float]] = {}  # busy and up, of earlier actors
        self._deadlines_at = 0.0
        self.resize(settings().replicas)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way, started or due."""
        return all(
            slot.is_up and not (slot.held or slot.cancelled or slot.exchanges)
            for slot in self.slots
        )

    def resize(self, count: int) -> None:
        """Starts slots up to `count`, or ends those without work that are beyond it.

        Slots whose replica failed to start end first, then the one that has been idle longest. One
        that is starting is let come up, and meanwhile none that is up ends in its place.
        """
        while len(self.slots) < count:
            used = {slot.index for slot in self.slots}
            index = next(number for number in range(count) if number not in used)
            self.slots.append(Slot(index))
            self._start(self.slots[-1])
        while len(self.slots) > count:
            failed = [slot for slot in self.slots if slot.failed_starts and not slot.is_up]
            up = [slot for slot in self.slots if slot.is_up]
            idle = [slot for slot in up if not slot.held and not slot.exchanges]
            if failed:
                ending = failed[-1]
            elif len(up) > count and idle:
                ending = min(idle, key=lambda slot: slot.idle_since)
            else:
                return
            self._end(ending)
            self.slots.remove(ending)

    def idle_for(self, now: float) -> float:
        """Seconds for which one of the replicas that are up at least has had no work."""
        idle = [now - slot.idle_since for slot in self.slots if slot.is_up and not slot.held]
        return max(idle, default=0.0)

    def take(self, ticket: Ticket) -> bool:
        """Gives a ticket to the least-loaded replica; False if all that are up are full."""
        settings = self._settings()
        room = settings.max_batch + max(1, round(AHEAD * settings.max_batch))
        free = [slot for slot in self.slots if slot.is_up and slot.load < room]
        if not free:
            return False
        slot = min(free, key=lambda candidate: candidate.load)
        ticket.attempts += 1
        ticket.deadline = time.monotonic() + settings.deadline_s
        slot.held[ticket.request.id] = ticket
        slot.load += ticket.request.n
        slot.outbox.append(ticket.request)
        return True

    def drop(self, call: Any) -> None:
        """Withdraws what replicas hold of a call that failed."""
        for slot in self.slots:
            names = [name for name, ticket in slot.held.items() if ticket.call is call]
            for name in names:
                self._release(slot, name)
            unsent = {request.id for request in slot.outbox}
            slot.cancelled += [name for name in names if name not in unsent]
            slot.outbox = [request for request in slot.outbox if request.id not in names]

    def poll(self, timeout_s: float) -> Events:
        """Sends what is to be sent, waits for something to happen, and repairs what broke."""
        events = Events()
        now = time.monotonic()
        for slot in self.slots:
            if slot.actor is None and slot.start_at <= now:
                self._start(slot)
            self._send(slot)
        references = {reference: slot for slot in self.slots for reference in slot.exchanges}
        references |= {slot.starting: slot for slot in self.slots if slot.starting is not None}
        if references:
            for reference in _wait(list(references), timeout_s):
                slot = references[reference]
                if reference == slot.starting:
                    self._finish_start(slot)
                elif reference in slot.exchanges:  # else the slot was replaced just now
                    self._collect(slot, reference, events)
        else:
            time.sleep(timeout_s)
        self._check_deadlines(events)
        return events

    def usage(self) -> dict[int, tuple[float, float]]:
        """Slot -> seconds for which its replicas have worked, and have been up."""
        now = time.monotonic()
        usage = dict(self._past_s)
        for slot in self.slots:
            if slot.is_up:
                busy, up = usage.get(slot.index, (0.0, 0.0))
                usage[slot.index] = (busy + slot.busy_s, up + now - slot.up_since)
        return usage

    def close(self) -> None:
        for slot in self.slots:
            self._end(slot)

    def _send(self, slot: Slot) -> None:
        if not slot.is_up or slot.actor is None:
            return
        while len(slot.exchanges) < EXCHANGES and (slot.held or slot.cancelled):
            slot.exchanges.append(
                slot.actor.exchange.remote(slot.outbox, slot.cancelled, self._settings().slice_s)
            )
            slot.outbox, slot.cancelled = [], []

    def _collect(self, slot: Slot, reference: Any, events: Events) -> None:
        slot.exchanges.remove(reference)
        try:
            report: Report = ray.get(reference)
        except RayTaskError as error:
            # The process lives but its engine may be in any state: it is not used again.
            self._replace(slot, f"its engine failed: {error.cause!r}", events)
            return
        except RayError as error:
            self._replace(slot, type(error).__name__, events)
            return
        slot.busy_s = report.busy_s
        for name, refusal in report.refused:
            ticket = slot.held.get(name)
            if ticket is not None:
                self._release(slot, name)
                events.refused.append((ticket, refusal))
        for completion in report.completions:
            ticket = slot.held.get(completion.request_id)
            if ticket is not None:  # else it was dropped
                ticket.samples.append(completion)
                if len(ticket.samples) == ticket.request.n:
                    self._release(slot, completion.request_id)
                events.finished.append((ticket, completion, slot.index))

    def _release(self, slot: Slot, name: str) -> None:
        slot.load -= slot.held.pop(name).request.n
        if not slot.held:
            slot.idle_since = time.monotonic()

    def _check_deadlines(self, events: Events) -> None:
        now = time.monotonic()
        if now < self._deadlines_at:
            return
        self._deadlines_at = now + DEADLINES_EVERY_S
        for slot in self.slots:
            if slot.starting is not None and slot.deadline <= now:
                self._start_failed(slot, "it was not up in time")
            elif any(ticket.deadline <= now for ticket in slot.held.values()):
                self._replace(slot, "it passed its deadline", events)

    def _replace(self, slot: Slot, reason: str, events: Events) -> None:
        """Starts another actor in the slot; what it held has come back."""
        logger.warning("replica %d is replaced: %s", slot.index, reason)
        events.reason = f"replica {slot.index} was replaced: {reason}"
        events.restarted += 1
        for ticket in slot.held.values():
            ticket.samples.clear()  # all of its samples are made again
            events.returned.append(ticket)
        self._end(slot)
        self._start(slot)

    def _end(self, slot: Slot) -> None:
        if slot.actor is not None:
            ray.kill(slot.actor)
        if slot.is_up:
            busy, up = self._past_s.get(slot.index, (0.0, 0.0))
            lived = time.monotonic() - slot.up_since
            self._past_s[slot.index] = (busy + slot.busy_s, up + lived)
        slot.actor = slot.starting = slot.pid = slot.node = None
        slot.held, slot.outbox, slot.cancelled, slot.exchanges = {}, [], [], []
        slot.load, slot.busy_s = 0, 0.0

    def _start(self, slot: Slot) -> None:
        settings = self._settings()
        actor_class = ray.remote(Replica).options(
            num_cpus=settings.cpus_per_replica,
            num_gpus=settings.gpus_per_replica,
            max_restarts=0,  # restarts are this set's: it must know what was lost
            scheduling_strategy="SPREAD",  # over the nodes, so that losing one loses least
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(settings.threads)}},
        )
        slot.actor = actor_class.remote(
            self._files,
            settings.max_batch,
            settings.threads,
            settings.replica_device,
            settings.engine,
        )
        slot.starting = slot.actor.describe.remote()
        slot.deadline = time.monotonic() + settings.start_deadline_s
        slot.idle_since = time.monotonic()

    def _finish_start(self, slot: Slot) -> None:
        try:
            identity = ray.get(slot.starting)
        except RayError as error:  # its constructor raised, or its environment cannot be made
            self._start_failed(slot, str(error))
            return
        if identity.checkpoint_hash != self._checkpoint_hash:
            raise EngineError(
                f"replica {slot.index} holds checkpoint {identity.checkpoint_hash}, the pool was "
                f"made for {self._checkpoint_hash}"
            )
        slot.starting, slot.failed_starts = None, 0
        slot.pid, slot.node = identity.pid, identity.node
        slot.up_since = slot.idle_since = time.monotonic()

    def _start_failed(self, slot: Slot, reason: str) -> None:
        slot.failed_starts += 1
        logger.warning("replica %d did not start: %s", slot.index, reason)
        self._end(slot)
        slot.start_at = time.monotonic() + min(LONGEST_PAUSE_S, 0.25 * 2**slot.failed_starts)


def start_failure(slots: list[Slot], settings: PoolSettings) -> EngineError | None:
    """The error of slots of which one has failed to start too often; None while none has."""
    for slot in slots:
        if slot.failed_starts >= MAX_FAILED_STARTS:
            return EngineError(
                f"replica {slot.index} failed to start {slot.failed_starts} times in a row; see "
                f"the warnings. Does the cluster have {settings.cpus_per_replica:g} CPUs and "
                f"{settings.gpus_per_replica:g} GPUs for each of {len(slots)} replicas?"
            )
    return None


def _wait(references: list[Any], timeout_s: float) -> Iterator[Any]:
    """All that are ready, once one is."""
    ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s)
    if ready and len(references) > 1:
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
    yield from ready
