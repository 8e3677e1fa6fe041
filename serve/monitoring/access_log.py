"""The access log: one line of JSON for each request, when its response has ended."""

from __future__ import annotations

from datetime import UTC, datetime

from mhc_model.engine import EngineStats
from serve.basics import JsonLog
from serve.monitoring.observer import RequestRecord


class AccessLog:
    """An observer that writes `RequestRecord`s. Neither prompts nor completions nor keys get in."""

    def __init__(self, log: JsonLog) -> None:
        self._log = log

    def accepted(self, request_id: str, route: str, samples: int) -> None:
        """Nothing: a request is logged when it has ended."""

    def first_token(self, request_id: str, route: str, ttft_s: float) -> None:
        """Nothing."""

    def finished(self, record: RequestRecord) -> None:
        """Writes the line."""
        self._log.write(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": record.id,
                "route": record.route,
                "samples": record.samples,
                "prompt_tokens": record.prompt_tokens,
                "completion_tokens": record.completion_tokens,
                "cached_tokens": record.cached_tokens,
                "gates_hash": record.gates_hash,
                "gates_source": record.gates_source,
                "behaviour": record.behaviour,
                "answer_gates_source": record.answer_gates_source,
                "answer_behaviour": record.answer_behaviour,
                "ttft_ms": _milliseconds(record.ttft_s),
                "ms": _milliseconds(record.total_s),
                "outcome": record.outcome,
                "status": record.status,
            }
        )

    def load(self, stats: EngineStats, pending: int) -> None:
        """Nothing: that is what the metrics are for."""


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)
