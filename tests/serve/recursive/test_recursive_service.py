"""POST /v1/recursive over a real engine: answers, streams, limits, and clients that leave."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from mhc_model import Engine
from mhc_model.recursion import CancelToken, EndpointModel, Session, SessionSettings, index_for
from serve.app import create_app
from serve.service import CompletionService
from serve.settings import RecursiveSettings

SECONDS = 20


def test_an_answer_with_passages_transcript_and_usage(ask, service, task):
    response = ask()
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["object"] == "recursive.answer"
    assert answer["model"] == "reader"
    assert answer["checkpoint"] == service.models().data[0].checkpoint
    assert any("Rosamund hid the brass key" in hit["text"] for hit in answer["passages"])
    assert task["text"][answer["passages"][0]["start"] :].startswith(answer["passages"][0]["text"])
    assert answer["usage"]["total_tokens"] <= 50_000
    assert answer["usage"]["prompt_tokens"] == sum(s["prompt_tokens"] for s in answer["transcript"])
    verbs = [step["verb"] for step in answer["transcript"]]
    assert verbs[:2] == ["search", "map"]
    assert verbs[-1] == "ask"
    assert (answer["gates_source"], len(answer["gates"])) == ("learned", 6)
    assert response.headers["x-request-id"]


def test_a_program_runs_and_its_fault_is_a_400(ask):
    answer = ask(question=None, program='[len(search("brass key", 2)), peek(0, 5)]').json()
    assert answer["answer"] == '[2, "Amber"]'
    assert answer["usage"]["total_tokens"] == 0
    response = ask(question=None, program="__import__('os').system('true')")
    assert response.status_code == 400
    assert "only these can be called" in response.json()["error"]["message"]


def test_a_small_budget_is_an_answer_without_text(ask):
    answer = ask(budget_tokens=20).json()
    assert (answer["answer"], answer["finish_reason"]) == (None, "budget")
    assert "20" in answer["detail"]
    assert answer["usage"] == {
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "budget_tokens": 20,
    }


def test_a_stream_gives_each_step_and_then_the_answer(ask, events_of):
    response = ask(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *steps, answer, done = events_of(response)
    assert done == "[DONE]"
    assert [event["object"] for event in steps] == ["recursive.step"] * len(steps)
    assert [event["step"] for event in steps] == answer["transcript"]
    whole = ask().json()
    assert answer["answer"] == whole["answer"]


def test_an_error_within_a_stream_is_its_last_event(ask, events_of):
    *steps, last = events_of(ask(stream=True, gates=[0.1, 0.2]))
    assert last["error"]["code"] == "invalid_gates"
    assert steps[-1]["step"]["error"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_session(
    reader, make_valve, serving, wait_until, stream, task
):
    engine = Engine.from_checkpoint(reader, max_batch=4, device="cpu")
    service = CompletionService(engine, "reader", max_queue=8)
    with serving(service) as url:
        valve = make_valve(engine)
        body = {**task, "stream": stream, "max_tokens": 100}

        def leave() -> None:
            with httpx.Client(timeout=1.0) as client, pytest.raises(httpx.TimeoutException):
                client.post(f"{url}/v1/recursive", json=body)

        leaving = threading.Thread(target=leave)
        leaving.start()
        wait_until(lambda: engine.has_work)
        leaving.join()
        valve.open.set()
        wait_until(lambda: not engine.has_work)
        wait_until(lambda: engine.stats().cancelled > 0)
        assert httpx.get(f"{url}/ready").status_code == 200


def test_more_sessions_than_allowed_are_refused_and_the_next_is_not(
    reader, make_valve, wait_until, task
):
    engine = Engine.from_checkpoint(reader, max_batch=4, device="cpu")
    valve = make_valve(engine)
    service = CompletionService(engine, "reader", max_queue=8)
    app = create_app(service, recursive=RecursiveSettings.model_validate({"max_sessions": 1}))
    body = {**task, "max_tokens": 4}

    async def two() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
            first = asyncio.create_task(client.post("/v1/recursive", json=body, timeout=SECONDS))
            await asyncio.to_thread(wait_until, lambda: engine.has_work)
            refused = await client.post("/v1/recursive", json=body)
            valve.open.set()
            done = await first
            return done, refused, await client.post("/v1/recursive", json=body, timeout=SECONDS)

    done, refused, again = asyncio.run(two())
    service.close()
    assert (done.status_code, refused.status_code, again.status_code) == (200, 429, 200)
    assert refused.headers["retry-after"]
    assert "1 sessions" in refused.json()["error"]["message"]


def test_a_session_past_the_deadline_is_a_504(reader, make_valve, wait_until, task):
    engine = Engine.from_checkpoint(reader, max_batch=4, device="cpu")
    valve = make_valve(engine)
    service = CompletionService(engine, "reader", max_queue=8, request_timeout_s=0.3)
    app = create_app(service)

    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
            return await client.post("/v1/recursive", json={**task})

    response = asyncio.run(one())
    valve.open.set()
    wait_until(lambda: not engine.has_work)
    service.close()
    assert response.status_code == 504


def test_another_server_reads_where_it_is_allowed(ask, live):
    """The endpoint is a second server of ours: any OpenAI-compatible one has that route."""
    endpoint = {"url": live, "model": "tiny", "context": 96}
    program = 'query("Which?", peek(0, 10))'
    response = ask({"endpoints": [live]}, question=None, program=program, endpoint=endpoint)
    # Our estimate counts bytes as tokens: this prompt might not fit, and that is said.
    assert response.status_code == 400
    assert "context" in response.json()["error"]["message"]
    roomy = {**endpoint, "context": 2000}
    response = ask({"endpoints": [live + "/"]}, question=None, program=program, endpoint=roomy)
    assert response.status_code == 502  # the server there refuses what is beyond its context
    assert "context is 96" in response.json()["error"]["message"]


def test_the_python_endpoint_model_reads_through_a_server_of_ours(service, serving, task):
    with serving(service) as url:
        model = EndpointModel(url, "reader", context=512, characters_per_token=1.0)
        limits = SessionSettings.model_validate({"max_tokens": 4, "budget_tokens": 50_000})
        session = Session(index_for(task["text"], model, limits), model, limits, gates=0.5)
        assert session.ask(task["question"]).finish_reason in ("answered", "not_found")
        assert session.usage.prompt_tokens > 0
        done = model.generate(["A prompt"], 3, (), [0.1, 0.9, 0.5], CancelToken())
        assert done[0].prompt_tokens > 0
