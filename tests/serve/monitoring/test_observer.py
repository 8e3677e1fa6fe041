"""What metrics and the log hear: one record a request, whatever became of it, and the load."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
import torch

from mhc_model import expand_gates
from mhc_model.engine import EngineStats
from mhc_model.gates import gates_hash
from serve.monitoring import RequestRecord

GREEDY = {"prompt": "Question: Tom", "max_tokens": 8, "temperature": 0}


class Notes:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.accepted_samples: list[tuple[str, str, int]] = []
        self.first_tokens: list[tuple[str, str, float]] = []
        self.records: list[RequestRecord] = []
        self.loads: list[tuple[EngineStats, int]] = []

    def accepted(self, request_id: str, route: str, samples: int) -> None:
        self.accepted_samples.append((request_id, route, samples))

    def first_token(self, request_id: str, route: str, ttft_s: float) -> None:
        self.first_tokens.append((request_id, route, ttft_s))

    def finished(self, record: RequestRecord) -> None:
        self.records.append(record)

    def load(self, stats: EngineStats, pending: int) -> None:
        self.loads.append((stats, pending))


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def service(make_service, notes):
    return make_service(observer=notes)


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_is_recorded(post, service, notes, tokenizer, stream):
    response = post(service, **GREEDY, n=2, gates=0.5, stream=stream, ignore_eos=True)
    (record,) = notes.records
    assert record.id == response.headers["x-request-id"]
    assert record.route == "/v1/completions"
    assert (record.outcome, record.status) == ("ok", 200)
    assert record.samples == 2
    assert record.prompt_tokens == len(tokenizer.encode("Question: Tom", bos=True))
    assert record.completion_tokens == 16
    assert record.gates_hash == gates_hash(expand_gates(0.5, 3))
    assert record.gates_source == "request"
    assert 0 < record.ttft_s < record.total_s
    assert record.tpot_s == pytest.approx((record.total_s - record.ttft_s) / 7)
    assert notes.accepted_samples == [(record.id, record.route, 2)]
    assert notes.first_tokens == [(record.id, record.route, record.ttft_s)]


def test_cached_tokens_are_counted(post, service, notes):
    prompt = [1 + i % 7 for i in range(80)]
    answers = [post(service, prompt=prompt, max_tokens=1).json() for _ in range(2)]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached[0] == 0
    assert 0 < cached[1] < 80
    assert [record.cached_tokens for record in notes.records] == cached
    post(service, prompt=prompt, max_tokens=1, stream=True)
    assert notes.records[-1].cached_tokens == cached[1]


def test_refused_requests_are_recorded(call, service, notes):
    calls = [
        ("POST", "/v1/completions", {"json": {**GREEDY, "gates": 2}}, 400, "refused"),
        ("POST", "/v1/completions", {"content": b"{"}, 400, "refused"),
        ("GET", "/v1/models/tiny", {}, 200, "ok"),
        ("GET", "/v1/models/other", {}, 404, "refused"),
        ("GET", "/nothing", {}, 404, "refused"),
        ("DELETE", "/health", {}, 405, "refused"),
    ]
    for method, path, arguments, status, outcome in calls:
        response = call(method, path, service, **arguments)
        record = notes.records[-1]
        assert response.status_code == record.status == status
        assert record.outcome == outcome
        assert record.id == response.headers["x-request-id"]
        assert re.fullmatch("req-[0-9a-f]{32}", record.id)
        assert (record.samples, record.ttft_s) == (0, None)
    routes = [record.route for record in notes.records]
    assert routes[2:5] == ["/v1/models/{model:path}"] * 2 + ["unknown"]
    assert len({record.id for record in notes.records}) == len(calls)


def test_failures_are_recorded(make_service, make_engine, make_valve, notes, post):
    engine = make_engine()
    valve = make_valve(engine)
    service = make_service(engine, observer=notes, request_timeout_s=0.1)
    post(service, **GREEDY)
    post(service, **GREEDY, stream=True)
    assert [(r.outcome, r.status) for r in notes.records] == [("timeout", 504)] * 2
    valve.fail = True
    valve.open.set()
    while service.failure is None:
        post(service, **GREEDY)
    post(service, **GREEDY)
    assert (notes.records[-1].outcome, notes.records[-1].status) == ("unavailable", 503)


def test_an_unexpected_error_is_a_500_with_an_id(call, service, notes, monkeypatch):
    monkeypatch.setattr(service, "models", lambda: 1 / 0)
    response = call("GET", "/v1/models", service)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "division" not in response.text
    assert response.headers["x-request-id"] == notes.records[-1].id
    assert notes.records[-1].outcome == "error"


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_are_recorded(
    serving, make_service, make_engine, make_valve, notes, wait_until, stream
):
    engine = make_engine()
    valve = make_valve(engine)
    with serving(make_service(engine, observer=notes)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json={**GREEDY, "stream": stream}, timeout=0.3)
        wait_until(lambda: len(notes.records) == 1)
        valve.open.set()
    assert (notes.records[0].outcome, notes.records[0].status) == ("cancelled", 499)


def test_a_cancelled_task_is_recorded(make_engine, make_valve, make_service, notes, client_of):
    """Ray Serve cancels the task of a request whose client has gone."""
    engine = make_engine()
    valve = make_valve(engine)
    service = make_service(engine, observer=notes)

    async def run() -> None:
        async with client_of(service) as client:
            task = asyncio.create_task(client.post("/v1/completions", json=GREEDY))
            while engine.active == 0:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(run())
    valve.open.set()
    assert notes.records[0].outcome == "cancelled"


def test_the_load_is_told_until_it_is_zero(post, service, notes, wait_until):
    post(service, prompt=[[1, 2]] * 6, max_tokens=40, ignore_eos=True)
    wait_until(lambda: notes.loads[-1][0].finished == 6)
    assert any(stats.decoding > 0 for stats, _ in notes.loads) or len(notes.loads) == 1
    last = notes.loads[-1][0]
    assert (last.decoding, last.prefilling, last.waiting, last.kv_tokens) == (0, 0, 0, 0)
    assert last.generated_tokens == 240


def test_hashes_are_of_one_vector_only(post, make_service, make_engine, plain_checkpoint, notes):
    service = make_service(make_engine(plain_checkpoint), observer=notes)
    post(service, **GREEDY)
    assert (notes.records[0].gates_hash, notes.records[0].gates_source) == (None, None)
    assert gates_hash(torch.zeros(6)) != gates_hash(torch.ones(6))
