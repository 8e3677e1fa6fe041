"""POST /v1/recursive over a real engine: answers, streams, limits, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mhc_model import Engine, save_checkpoint
from mhc_model.recursion import CancelToken, EndpointModel, Session, SessionSettings, index_for
from serve.app import create_app
from serve.service import CompletionService
from serve.settings import RecursiveSettings

SECONDS = 20
TEXT = "Amber herons wade in the shallows. " * 60
TEXT += "Rosamund hid the brass key beneath the flagstone. " + "Grey herons sleep late. " * 60
QUESTION = "Where did Rosamund hide the key?"


@pytest.fixture(scope="session")
def reader(tmp_path_factory, tokenizer, tiny_model) -> Path:
    """A checkpoint with a context that holds a passage and a question."""
    directory = tmp_path_factory.mktemp("reader") / "reader"
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=512)
    save_checkpoint(directory, model, tokenizer)
    return directory


Send = Callable[..., httpx.Response]


@pytest.fixture
def service(reader) -> Iterator[CompletionService]:
    engine = Engine.from_checkpoint(reader, max_batch=4, device="cpu")
    service = CompletionService(engine, "reader", max_queue=8)
    yield service
    service.close()


@pytest.fixture
def ask(service) -> Send:
    """`ask(settings={}, **fields)`: one POST /v1/recursive of the text and question above."""

    def send(settings: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
        app = create_app(service, recursive=RecursiveSettings.model_validate(settings or {}))
        body = {"text": TEXT, "question": QUESTION, "max_tokens": 4, "budget_tokens": 50_000}
        body |= fields

        async def one() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
                return await client.post("/v1/recursive", json=body, timeout=SECONDS)

        return asyncio.run(one())

    return send


def test_an_answer_with_passages_transcript_and_usage(ask, service):
    response = ask()
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["object"] == "recursive.answer"
    assert answer["model"] == "reader"
    assert answer["checkpoint"] == service.models().data[0].checkpoint
    assert any("Rosamund hid the brass key" in hit["text"] for hit in answer["passages"])
    assert TEXT[answer["passages"][0]["start"] :].startswith(answer["passages"][0]["text"])
    assert answer["usage"]["total_tokens"] <= 50_000
    assert answer["usage"]["prompt_tokens"] == sum(s["prompt_tokens"] for s in answer["transcript"])
    verbs = [step["verb"] for step in answer["transcript"]]
    assert verbs[:2] == ["search", "map"]
    assert verbs[-1] == "ask"
    assert (answer["gates_source"], len(answer["gates"])) == ("learned", 6)
    assert response.headers["x-request-id"]


def test_gates_are_those_of_completions(ask):
    answers = {gate: ask(gates=gate).json() for gate in (0.0, 1.0)}
    assert answers[0.0]["gates"] == [0.0] * 6
    assert answers[0.0]["gates_source"] == "request"
    results = [
        [step["result"] for step in answer["transcript"] if step["verb"] == "map"]
        for answer in answers.values()
    ]
    assert results[0] != results[1]
    for gates, code in (([0.1, 0.2], "invalid_gates"), ("policy", "no_policy")):
        response = ask(gates=gates)
        assert (response.status_code, response.json()["error"]["code"]) == (400, code)


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


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"question": None}, 400, "question"),
        ({"program": "1"}, 400, "question"),
        ({"text": ""}, 400, "text"),
        ({"text": "  "}, 400, None),
        ({"text": "x" * 5001}, 413, "text"),
        ({"question": "q" * 2001}, 400, "question"),
        ({"budget_tokens": 60_001}, 400, "budget_tokens"),
        ({"budget_tokens": 0}, 400, "budget_tokens"),
        ({"k": 101}, 400, "k"),
        ({"max_depth": 17}, 400, "max_depth"),
        ({"max_depth": "4"}, 400, "max_depth"),
        ({"max_tokens": 600}, 400, None),
        ({"model": "other"}, 404, "model"),
        ({"qestion": "x"}, 400, "qestion"),
        ({"endpoint": {"url": "http://127.0.0.1:9", "model": "m"}}, 400, "endpoint"),
        ({"endpoint": {"url": "file:///etc/passwd", "model": "m"}}, 400, "endpoint"),
    ],
)
def test_what_is_refused_names_the_field(ask, fields, status, param):
    limits = {"max_text_chars": 5000, "max_budget_tokens": 60_000}
    response = ask(limits, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    assert error["message"]


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_stream_gives_each_step_and_then_the_answer(ask):
    response = ask(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *steps, answer, done = events(response.text)
    assert done == "[DONE]"
    assert [event["object"] for event in steps] == ["recursive.step"] * len(steps)
    assert [event["step"] for event in steps] == answer["transcript"]
    whole = ask().json()
    assert answer["answer"] == whole["answer"]


def test_an_error_within_a_stream_is_its_last_event(ask):
    *steps, last = events(ask(stream=True, gates=[0.1, 0.2]).text)
    assert last["error"]["code"] == "invalid_gates"
    assert steps[-1]["step"]["error"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_session(reader, make_valve, serving, wait_until, stream):
    engine = Engine.from_checkpoint(reader, max_batch=4, device="cpu")
    service = CompletionService(engine, "reader", max_queue=8)
    with serving(service) as url:
        valve = make_valve(engine)
        body = {"text": TEXT, "question": QUESTION, "stream": stream, "max_tokens": 100}

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


def test_more_sessions_than_allowed_are_refused_and_the_next_is_not(reader, make_valve, wait_until):
    engine = Engine.from_checkpoint(reader, max_batch=4, device="cpu")
    valve = make_valve(engine)
    service = CompletionService(engine, "reader", max_queue=8)
    app = create_app(service, recursive=RecursiveSettings.model_validate({"max_sessions": 1}))
    body = {"text": TEXT, "question": QUESTION, "max_tokens": 4}

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


def test_a_session_past_the_deadline_is_a_504(reader, make_valve, wait_until):
    engine = Engine.from_checkpoint(reader, max_batch=4, device="cpu")
    valve = make_valve(engine)
    service = CompletionService(engine, "reader", max_queue=8, request_timeout_s=0.3)
    app = create_app(service)

    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
            return await client.post("/v1/recursive", json={"text": TEXT, "question": QUESTION})

    response = asyncio.run(one())
    valve.open.set()
    wait_until(lambda: not engine.has_work)
    service.close()
    assert response.status_code == 504


def test_a_map_wider_than_the_queue_goes_through(ask):
    # The queue holds 12 prompts; this maps over 30.
    program = 'answers = map("Which?", [p for p in [[0, 40], [40, 80], [80, 120]] '
    program += "for again in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])\nlen(answers)"
    assert ask(question=None, program=program).json()["answer"] == "30"


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


def test_the_python_endpoint_model_reads_through_a_server_of_ours(service, serving):
    with serving(service) as url:
        model = EndpointModel(url, "reader", context=512, characters_per_token=1.0)
        limits = SessionSettings.model_validate({"max_tokens": 4, "budget_tokens": 50_000})
        session = Session(index_for(TEXT, model, limits), model, limits, gates=0.5)
        assert session.ask(QUESTION).finish_reason in ("answered", "not_found")
        assert session.usage.prompt_tokens > 0
        done = model.generate(["A prompt"], 3, (), [0.1, 0.9, 0.5], CancelToken())
        assert done[0].prompt_tokens > 0
