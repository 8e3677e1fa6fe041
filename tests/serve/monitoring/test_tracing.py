"""Every request has an id and one record, whatever became of it."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

GREEDY = {"prompt": "Question: Tom", "max_tokens": 8, "temperature": 0}


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
