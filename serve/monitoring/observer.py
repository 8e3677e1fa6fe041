"""What the service tells about its requests and its load; metrics and the log plug in here.

`CompletionService(..., observer=...)` takes one; `create_app` of that service uses it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from mhc_model.engine import EngineStats

Outcome = Literal[
    "ok",  # answered: any status below 400
    "refused",  # the request is at fault: 4xx, but 429
    "overloaded",  # 429
    "unavailable",  # 503: the engine failed, or the replica is shutting down
    "timeout",  # 504: past request_timeout_s
    "cancelled",  # the client went away
    "error",  # 500, and what failed in a stream that had begun
]


@dataclass(frozen=True)
class RequestRecord:
    """One HTTP request when its last byte was sent, or its client had gone.

    Attributes:
        id: the response's x-request-id.
        route: the route's path template, such as "/v1/models/{model}"; "unknown" where none
            matched. So a label of it is bounded.
        samples: completions asked for; 0 for routes without the engine.
        prompt_tokens: of all prompts; 0 where the request was refused before they were counted.
        completion_tokens: of all samples, those that were answered or streamed; the engine's
            `generated_tokens` also counts what nobody waited for.
        cached_tokens: prompt tokens that came from the prefix cache.
        gates_hash: `mhc_model.gates.gates_hash` of the gates, where all prompts had the same;
            of those of prompt and answer, (2, 2L), where they differ; None for a plain model,
            several vectors, and requests refused earlier.
        gates_source: "request", "learned", "policy" or "behaviour"; None where there are no gates.
        behaviour: its name, where the source is one.
        answer_gates_source: likewise of the answer's gates, where they differ.
        answer_behaviour: likewise.
        ttft_s: seconds from the request's arrival to its first token; None where none came.
        total_s: seconds from the request's arrival to the end of its response.
        outcome: see `Outcome`.
        status: HTTP status that was sent; 499 where the client left before one was.
    """

    id: str
    route: str
    samples: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ttft_s: float | None
    total_s: float
    outcome: Outcome
    status: int
    gates_hash: str | None = None
    gates_source: str | None = None
    behaviour: str | None = None
    answer_gates_source: str | None = None
    answer_behaviour: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token of a sample after its first; None where no sample had two."""
        later = self.completion_tokens - self.samples
        if self.ttft_s is None or later < 1:
            return None
        return (self.total_s - self.ttft_s) * self.samples / later


class Observer(Protocol):
    """Hears of every request. Its methods must be quick, must not raise, and may be called from
    the event loop's thread (all but `load`) and the engine's (`load`)."""

    def accepted(self, request_id: str, route: str, samples: int) -> None:
        """The samples of a request were queued for the engine."""

    def first_token(self, request_id: str, route: str, ttft_s: float) -> None:
        """The request's first token is there."""

    def finished(self, record: RequestRecord) -> None:
        """The request's response has ended: every request, also refused ones, exactly once."""

    def load(self, stats: EngineStats, pending: int) -> None:
        """How busy the engine is: every tenth of a second while it works, and when it is idle.

        Args:
            stats: of the engine.
            pending: samples accepted and not finished, those not yet in the engine included.
        """


class Observers:
    """Tells several observers, one after the other; without any it tells nobody."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def accepted(self, request_id: str, route: str, samples: int) -> None:
        for observer in self._observers:
            observer.accepted(request_id, route, samples)

    def first_token(self, request_id: str, route: str, ttft_s: float) -> None:
        for observer in self._observers:
            observer.first_token(request_id, route, ttft_s)

    def finished(self, record: RequestRecord) -> None:
        for observer in self._observers:
            observer.finished(record)

    def load(self, stats: EngineStats, pending: int) -> None:
        for observer in self._observers:
            observer.load(stats, pending)
