"""What a replica counts is what it did, and /metrics tells of all replicas."""

from __future__ import annotations

import asyncio
import json
import pickle

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mhc_model.engine import EngineStats
from serve.app import create_app
from serve.basics import JsonLog
from serve.monitoring import AccessLog, Observers, ReplicaMetrics, RequestRecord, exposition

BODY = {"prompt": ["Question: Tom", "a"], "max_tokens": 7, "temperature": 0, "ignore_eos": True}


def samples_of(text: bytes) -> dict[tuple, float]:
    """(name, labels but replica) -> value, of one replica."""
    return {
        (s.name, *(v for k, v in sorted(s.labels.items()) if k not in ("replica", "le"))): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
        if s.labels.get("le", "+Inf") == "+Inf"
    }


@pytest.fixture
def log(tmp_path):
    return tmp_path / "access.log"


@pytest.fixture
def served(make_service, log):
    """The application, and what it counts."""
    metrics = ReplicaMetrics("r1")
    service = make_service(observer=Observers(metrics, AccessLog(JsonLog(str(log)))))

    async def text() -> bytes:
        return exposition([metrics.collect()])

    return create_app(service, metrics=text), service


def test_requests_are_counted_and_logged_with_what_they_took(served, log, wait_until):
    app, service = served

    async def talk() -> tuple[list[httpx.Response], bytes]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            post = [
                await client.post("/v1/completions", json=body, headers={"x-request-id": name})
                for name, body in (
                    ("good", {**BODY, "gates": 0.5}),
                    ("stream", {**BODY, "stream": True}),
                    ("bad", {**BODY, "gates": 2}),
                )
            ]
            post.append(await client.get("/v1/nothing", headers={"x-request-id": "a\tb"}))
            await asyncio.to_thread(wait_until, lambda: service.health().active == 0)
            return post, (await client.get("/metrics")).content

    answers, text = asyncio.run(talk())
    counted = samples_of(text)
    prompt = answers[0].json()["usage"]["prompt_tokens"]
    assert counted["mhc_requests_total", "ok", "/v1/completions", "200"] == 2
    assert counted["mhc_requests_total", "refused", "/v1/completions", "400"] == 1
    assert counted["mhc_requests_total", "refused", "unknown", "404"] == 1
    assert counted["mhc_generated_tokens_total",] == 2 * 14
    assert counted["mhc_prompt_tokens_total",] == 2 * prompt
    assert counted["mhc_samples_finished_total",] == 4
    assert counted["mhc_rows_decoding",] == counted["mhc_samples_pending",] == 0
    for name in ("time_to_first_token", "time_per_output_token", "request"):
        assert counted[f"mhc_{name}_seconds_count",] == 2
        assert counted[f"mhc_{name}_seconds_sum",] > 0
    assert counted["mhc_batch_size_count",] > 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    good, stream, bad, unknown = lines[:4]
    assert [line["id"] for line in lines[:3]] == ["good", "stream", "bad"]
    assert unknown["id"] == answers[3].headers["x-request-id"] != "a\tb"
    assert (good["prompt_tokens"], good["completion_tokens"]) == (prompt, 14)
    assert 0 < good["ttft_ms"] < good["ms"]
    assert len(good["gates_hash"]) == 64
    assert good["gates_hash"] != stream["gates_hash"]
    assert (good["gates_source"], stream["gates_source"]) == ("request", "learned")
    assert (bad["status"], bad["outcome"], bad["completion_tokens"]) == (400, "refused", 0)
    assert (unknown["status"], unknown["route"]) == (404, "unknown")
    assert "Tom" not in log.read_text()


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


def test_a_log_takes_whole_lines_of_several_writers(tmp_path):
    path = tmp_path / "log"
    logs = [JsonLog(str(path)), JsonLog(str(path))]
    for number in range(50):
        logs[number % 2].write({"number": number})
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [*range(50)]
    JsonLog("off").write({"a": 1})
