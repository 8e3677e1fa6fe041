"""What a replica counts is what it did, and the metrics tell of all replicas."""

from __future__ import annotations

import pickle

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mhc_model.engine import EngineStats
from serve.monitoring import ReplicaMetrics, RequestRecord, exposition


def samples_of(text: bytes) -> dict[tuple, float]:
    """(name, labels but replica) -> value, of one replica."""
    return {
        (s.name, *(v for k, v in sorted(s.labels.items()) if k not in ("replica", "le"))): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
        if s.labels.get("le", "+Inf") == "+Inf"
    }


def test_requests_are_counted_with_what_they_took(talk):
    counted = samples_of(talk.metrics)
    assert counted["mhc_requests_total", "ok", "/v1/completions", "200"] == 2
    assert counted["mhc_requests_total", "refused", "/v1/completions", "400"] == 1
    assert counted["mhc_requests_total", "refused", "unknown", "404"] == 1
    assert counted["mhc_generated_tokens_total",] == 2 * 14
    assert counted["mhc_prompt_tokens_total",] == 2 * talk.prompt_tokens
    assert counted["mhc_samples_finished_total",] == 4
    assert counted["mhc_rows_decoding",] == counted["mhc_samples_pending",] == 0
    for name in ("time_to_first_token", "time_per_output_token", "request"):
        assert counted[f"mhc_{name}_seconds_count",] == 2
        assert counted[f"mhc_{name}_seconds_sum",] > 0
    assert counted["mhc_batch_size_count",] > 0


def record(**fields) -> RequestRecord:
    values = {
        "id": "r",
        "route": "/v1/completions",
        "samples": 1,
        "prompt_tokens": 3,
        "completion_tokens": 11,
        "cached_tokens": 0,
        "gates_hash": None,
        "gates_source": None,
        "ttft_s": 0.5,
        "total_s": 2.5,
        "outcome": "ok",
        "status": 200,
    }
    return RequestRecord(**{**values, **fields})


def test_gauges_follow_the_engine_and_counters_only_grow():
    metrics = ReplicaMetrics("r1")
    metrics.load(EngineStats(waiting=2, prefilling=1, decoding=3, generated_tokens=10), 7)
    metrics.load(EngineStats(waiting=0, prefilling=0, decoding=2, generated_tokens=25), 2)
    metrics.finished(record())
    counted = samples_of(exposition([metrics.collect()]))
    assert counted["mhc_samples_waiting",] == counted["mhc_rows_prefilling",] == 0
    assert counted["mhc_rows_decoding",] == counted["mhc_samples_pending",] == 2
    assert counted["mhc_generated_tokens_total",] == 25
    assert (counted["mhc_batch_size_count",], counted["mhc_batch_size_sum",]) == (2, 6)
    assert counted["mhc_time_per_output_token_seconds_sum",] == pytest.approx(0.2)


def test_replicas_are_told_apart_and_each_name_stands_once():
    replicas = [ReplicaMetrics("r1"), ReplicaMetrics("r2")]
    for count, metrics in enumerate(replicas, start=1):
        metrics.load(EngineStats(decoding=count), count)
        metrics.finished(record())
    # As they come from another process.
    text = exposition([pickle.loads(pickle.dumps(metrics.collect())) for metrics in replicas])
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    rows = families["mhc_rows_decoding"].samples
    assert {s.labels["replica"]: s.value for s in rows} == {"r1": 1, "r2": 2}
    assert text.decode().count("# TYPE mhc_rows_decoding ") == 1
    assert b"_created" not in text
