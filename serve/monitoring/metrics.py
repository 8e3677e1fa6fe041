"""Prometheus metrics of a replica, and GET /metrics: those of all replicas of the service.

Every series has the label `replica`, so that one scrape of the service's own port, whichever
replica answers it, tells about all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mhc_model.engine import EngineStats
from serve.monitoring.observer import RequestRecord

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST

LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TOKEN_LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Gauges and counters that are read off the engine's own figures: name, help, value.
_ENGINE_GAUGES = (
    ("mhc_samples_waiting", "samples in the engine without a row", lambda s: s.waiting),
    ("mhc_rows_prefilling", "rows whose prompt is being read", lambda s: s.prefilling),
    ("mhc_rows_decoding", "rows that generate", lambda s: s.decoding),
    ("mhc_kv_tokens", "positions of the KV cache in use", lambda s: s.kv_tokens),
    ("mhc_kv_capacity_tokens", "positions of the KV cache", lambda s: s.kv_capacity),
    ("mhc_prefix_cache_bytes", "bytes in the prefix cache", lambda s: s.prefix_cache_bytes),
)
_ENGINE_COUNTERS = (
    ("mhc_engine_steps", "steps of the engine", lambda s: s.steps),
    ("mhc_prompt_tokens", "prompt tokens that got a row", lambda s: s.prompt_tokens),
    ("mhc_cached_tokens", "those that came from the prefix cache", lambda s: s.cached_tokens),
    ("mhc_generated_tokens", "tokens drawn", lambda s: s.generated_tokens),
    ("mhc_samples_finished", "samples that ended by themselves", lambda s: s.finished),
    ("mhc_samples_cancelled", "samples that were cancelled", lambda s: s.cancelled),
)


class ReplicaMetrics:
    """An observer that counts. Its registry is its own, so that a process may have several."""

    def __init__(self, replica: str) -> None:
        """Starts at zero.

        Args:
            replica: the label of every series.
        """
        self._replica = replica
        self._seen = EngineStats()
        self.registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "mhc_requests",
            "requests by how they ended",
            ["replica", "route", "outcome", "status"],
            registry=self.registry,
        )
        self._under_way = self._gauge("mhc_samples_pending", "samples accepted and not finished")
        self._ttft = self._histogram(
            "mhc_time_to_first_token_seconds", "from arrival to the first token", LATENCIES
        )
        self._tpot = self._histogram(
            "mhc_time_per_output_token_seconds",
            "mean of a request, from its first token on",
            TOKEN_LATENCIES,
        )
        self._duration = self._histogram(
            "mhc_request_seconds", "from arrival to the end of the response", LATENCIES
        )
        self._batch = self._histogram(
            "mhc_batch_size",
            "rows in use, seen ten times a second while there are any",
            BATCH_SIZES,
        )
        self._gauges = [self._gauge(name, text) for name, text, _ in _ENGINE_GAUGES]
        self._counters = [
            Counter(name, text, ["replica"], registry=self.registry).labels(replica)
            for name, text, _ in _ENGINE_COUNTERS
        ]

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["replica"], registry=self.registry).labels(self._replica)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(name, text, ["replica"], registry=self.registry, buckets=buckets)
        return histogram.labels(self._replica)

    def accepted(self, request_id: str, route: str, samples: int) -> None:
        """Nothing: `load` tells how many samples there are."""

    def first_token(self, request_id: str, route: str, ttft_s: float) -> None:
        """Takes the time to the first token."""
        self._ttft.observe(ttft_s)

    def finished(self, record: RequestRecord) -> None:
        """Counts the request; its times, if the engine worked for it."""
        self._requests.labels(self._replica, record.route, record.outcome, str(record.status)).inc()
        if record.samples:
            self._duration.observe(record.total_s)
        if record.tpot_s is not None:
            self._tpot.observe(record.tpot_s)

    def load(self, stats: EngineStats, pending: int) -> None:
        """Takes the engine's figures; called on one thread only."""
        self._under_way.set(pending)
        for gauge, (_, _, value) in zip(self._gauges, _ENGINE_GAUGES, strict=True):
            gauge.set(value(stats))
        for counter, (_, _, value) in zip(self._counters, _ENGINE_COUNTERS, strict=True):
            counter.inc(value(stats) - value(self._seen))
        self._seen = stats
        if stats.prefilling + stats.decoding:
            self._batch.observe(stats.prefilling + stats.decoding)

    def collect(self) -> list[Metric]:
        """The metrics as they are now; they can be pickled."""
        return list(self.registry.collect())


class _Collected:
    """Metrics of several replicas as one collector."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def exposition(replicas: Sequence[Sequence[Metric]]) -> bytes:
    """Prometheus's text format of the metrics of all replicas; each name once."""
    merged: dict[str, Metric] = {}
    for metrics in replicas:
        for metric in metrics:
            family = merged.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type)
            )
            # When a counter began is noise: it begins with its replica.
            family.samples.extend(s for s in metric.samples if not s.name.endswith("_created"))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(merged.values()))
    return generate_latest(registry)
