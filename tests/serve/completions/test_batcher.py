"""Callers share one batch, wait in a bounded queue, may leave, and never hang."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mhc_model import EngineError, Request, SamplingParams
from serve.completions import Batcher
from serve.errors import APIError

SECONDS = 20
BODY = {"prompt": [1, 2, 3], "max_tokens": 90, "temperature": 0}


@pytest.fixture
def engine(make_engine):
    return make_engine(max_batch=2)


@pytest.fixture
def valve(engine, make_valve):
    return make_valve(engine)


@pytest.fixture
def batcher(engine, valve):
    batcher = Batcher(engine, max_queue=4)
    yield batcher
    valve.open.set()
    batcher.close()


def requests(count: int, max_tokens: int = 2) -> list[Request]:
    sampling = SamplingParams(max_tokens=max_tokens)
    return [Request([1, 2, 3], sampling=sampling) for _ in range(count)]


def test_completions_come_in_the_order_of_the_requests(batcher, valve, wait_until):
    valve.open.set()
    sent = [
        Request([1, 2, 3], gates=i / 5, sampling=SamplingParams(max_tokens=9)) for i in range(5)
    ]
    done = batcher.submit(sent).result(SECONDS)
    assert [completion.request_id for completion in done] == [request.id for request in sent]
    wait_until(lambda: batcher.pending == 0)


def test_a_call_with_one_bad_request_is_refused_whole(batcher, valve, engine, wait_until):
    valve.open.set()
    bad = Request([1, 10_000])
    future = batcher.submit([*requests(2, 90), bad, *requests(1)])
    with pytest.raises(EngineError, match="vocabulary"):
        future.result(SECONDS)
    wait_until(lambda: batcher.pending == 0 and not engine.has_work)
    assert valve.passes < 5  # what had been accepted was dropped, not decoded
    assert len(batcher.submit(requests(3)).result(SECONDS)) == 3


def test_a_full_queue_refuses_and_later_accepts(batcher, valve, wait_until):
    calls = [batcher.submit(requests(1)) for _ in range(5)]
    with pytest.raises(APIError, match="6 prompts") as refused:
        batcher.submit(requests(2))
    assert refused.value.status == 429
    assert int(refused.value.response().headers["Retry-After"]) >= 1
    calls.append(batcher.submit(requests(1)))
    valve.open.set()
    assert all(len(call.result(SECONDS)) == 1 for call in calls)
    wait_until(lambda: batcher.pending == 0)
    assert len(batcher.submit(requests(6)).result(SECONDS)) == 6


def test_cancelling_frees_the_rows_and_nobody_else(batcher, valve, engine, wait_until):
    leaving = batcher.submit(requests(2, 90))
    wait_until(lambda: batcher.active == 2)
    waiting = batcher.submit(requests(1, 90))
    staying = batcher.submit(requests(1))
    assert leaving.cancel()
    assert waiting.cancel()
    assert batcher.pending == 1
    valve.open.set()
    assert len(staying.result(SECONDS)) == 1
    wait_until(lambda: not engine.has_work)
    assert valve.passes < 20  # of the 90 that the others would have taken


def test_an_engine_failure_reaches_everyone(batcher, valve):
    calls = [batcher.submit(requests(2)) for _ in range(3)]
    valve.fail = True
    valve.open.set()
    for call in calls:
        with pytest.raises(APIError, match="RuntimeError") as failed:
            call.result(SECONDS)
        assert failed.value.status == 503
    with pytest.raises(APIError, match="RuntimeError"):
        batcher.submit(requests(1))
    assert batcher.failure is not None


def test_closing_fails_what_is_under_way(batcher, valve, wait_until):
    call = batcher.submit(requests(2))
    wait_until(lambda: batcher.active == 2)
    threading.Timer(0.1, valve.open.set).start()
    batcher.close()
    with pytest.raises(APIError, match="shutting down"):
        call.result(SECONDS)
    with pytest.raises(APIError, match="shutting down"):
        batcher.submit(requests(1))


def test_the_event_loop_goes_on_and_a_client_may_leave(
    engine, valve, make_service, client_of, wait_until
):
    service = make_service(engine)

    async def run() -> None:
        async with client_of(service) as client:
            post = asyncio.create_task(client.post("/v1/completions", json=BODY))
            while (await client.get("/health")).json()["active"] == 0:
                await asyncio.sleep(0.005)
            health = (await client.get("/health")).json()  # the engine is still held in its step
            assert (health["active"], health["waiting"]) == (1, 0)
            post.cancel()
            await asyncio.wait([post])
            assert post.cancelled()
            valve.open.set()

    asyncio.run(run())
    wait_until(lambda: not engine.has_work)
    assert valve.passes < 20  # of 90
    assert service.failure is None


def test_overload_and_failure_over_http(engine, valve, make_service, client_of):
    service = make_service(engine, max_queue=0)

    async def run() -> None:
        async with client_of(service) as client:
            first = asyncio.create_task(
                client.post("/v1/completions", json={**BODY, "prompt": [[1], [2]]})
            )
            while (await client.get("/health")).json()["active"] < 2:
                await asyncio.sleep(0.005)
            refused = await client.post("/v1/completions", json=BODY)
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
            assert refused.json()["error"]["type"] == "rate_limit_error"
            valve.fail = True
            valve.open.set()
            for response in (await first, await client.get("/health")):
                assert response.status_code == 503
                assert response.json()["error"]["type"] == "server_error"

    asyncio.run(run())


def test_functions_run_between_steps(batcher, valve, engine):
    call = batcher.submit(requests(1, 20))
    job = batcher.run(lambda engine: (threading.current_thread().name, engine.active))
    failing = batcher.run(lambda engine: 1 / 0)
    assert batcher.pending == 3
    valve.open.set()
    assert job.result(SECONDS) in {("engine", 0), ("engine", 1)}
    with pytest.raises(ZeroDivisionError):
        failing.result(SECONDS)
    assert len(call.result(SECONDS)) == 1  # the engine goes on
    assert batcher.failure is None


def test_functions_count_and_fail_like_samples(batcher, valve, wait_until):
    call = batcher.submit(requests(2))
    wait_until(lambda: batcher.active == 2)
    jobs = [batcher.run(lambda engine: 1) for _ in range(4)]
    with pytest.raises(APIError, match="6 prompts"):
        batcher.run(lambda engine: 1)
    assert batcher.refusal is not None
    valve.fail = True
    valve.open.set()
    for future in (call, *jobs):
        with pytest.raises(APIError) as failed:
            future.result(SECONDS)
        assert failed.value.status == 503


def test_draining_finishes_what_was_accepted(batcher, valve, wait_until):
    calls = [batcher.submit(requests(1, 30)) for _ in range(4)]
    wait_until(lambda: batcher.active == 2)
    closing = threading.Thread(target=batcher.close, args=(SECONDS,))
    closing.start()
    wait_until(lambda: batcher.refusal is not None)
    with pytest.raises(APIError, match="shutting down") as refused:
        batcher.submit(requests(1))
    assert refused.value.status == 503
    assert int(refused.value.response().headers["Retry-After"]) >= 1
    valve.open.set()
    assert all(len(call.result(SECONDS)[0].tokens) <= 30 for call in calls)
    closing.join(SECONDS)
    assert not closing.is_alive()


def test_draining_ends_at_its_limit(batcher, valve, wait_until):
    calls = [batcher.submit(requests(1, 90)) for _ in range(6)]
    wait_until(lambda: batcher.active == 2)
    threading.Timer(0.2, valve.open.set).start()
    batcher.close(0.1)
    for call in calls:
        with pytest.raises(APIError, match="shutting down"):
            call.result(SECONDS)


def test_samples_come_in_order(batcher, valve):
    valve.open.set()
    sampling = SamplingParams(max_tokens=4, temperature=1.0, seed=1)
    sent = [Request([1, 2, 3], sampling=sampling, n=n) for n in (1, 3)]
    done = batcher.submit(sent).result(SECONDS)
    assert [(each.request_id, each.index) for each in done] == [
        (request.id, index) for request in sent for index in range(request.n)
    ]
    assert done[0].tokens == done[1].tokens != done[2].tokens


def test_ready_follows_the_queue(engine, valve, make_service, client_of):
    service = make_service(engine, max_queue=0)

    async def run() -> None:
        async with client_of(service) as client:
            assert (await client.get("/ready")).status_code == 200
            body = {**BODY, "prompt": [[1], [2]]}
            first = asyncio.create_task(client.post("/v1/completions", json=body))
            while (await client.get("/health")).json()["active"] < 2:
                await asyncio.sleep(0.005)
            full = await client.get("/ready")
            assert full.status_code == 503
            assert int(full.headers["retry-after"]) >= 1
            valve.open.set()
            assert (await first).status_code == 200
            assert (await client.get("/ready")).json() == {"status": "ready"}
            service.close()
            assert (await client.get("/ready")).status_code == 503

    asyncio.run(run())


def test_a_step_that_does_not_end_is_a_failure_until_it_does(
    make_service, make_engine, make_valve, call, post, wait_until, error_of
):
    """Also when nobody waits any more, since all requests have timed out."""
    engine = make_engine()
    valve = make_valve(engine)
    service = make_service(engine, request_timeout_s=0.1, stall_s=0.3)
    assert call("GET", "/health", service).status_code == 200
    assert post(service, prompt="a", max_tokens=2).status_code == 504
    wait_until(lambda: service.failure is not None)
    for path in ("/health", "/ready"):
        assert "no step of the engine" in error_of(call("GET", path, service), 503)["message"]
    assert error_of(post(service, prompt="a"), 503)["code"] == "engine_unavailable"
    valve.open.set()
    wait_until(lambda: service.failure is None)
    assert call("GET", "/health", service).status_code == 200
    assert call("GET", "/ready", service).status_code == 200


def test_an_engine_without_work_never_stalls(make_service, call, wait_until):
    service = make_service(stall_s=1e-9)
    wait_until(lambda: service._batcher._busy_since is None)
    assert call("GET", "/health", service).status_code == 200
