"""Streams on the wire: events, errors after the beginning, deadlines, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx
import openai
import pytest

from mhc_model import save_checkpoint

PROMPT = "Question: Tom has 7 apples"
GREEDY = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0}
STREAM = {**GREEDY, "stream": True}
LONG = {"prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": True}


def events_of(response: httpx.Response) -> list[dict | str]:
    """What the `data:` lines hold."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    return [entry if entry == "[DONE]" else json.loads(entry) for entry in data]


@pytest.fixture(scope="module")
def long_checkpoint(tmp_path_factory, tokenizer, tiny_model):
    """Its completions take many seconds."""
    directory = tmp_path_factory.mktemp("long") / "long"
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=2048)
    save_checkpoint(directory, model, tokenizer)
    return directory


def test_events_are_chunks_and_then_done(post):
    whole = post(**GREEDY).json()
    *chunks, done = events_of(post(**STREAM))
    assert done == "[DONE]"
    constant = ("id", "object", "created", "model", "gates_source", "checkpoint")
    assert {tuple(chunk[name] for name in constant) for chunk in chunks} == {
        tuple(chunks[0][name] for name in constant)
    }
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[0]["object"] == "text_completion"
    assert chunks[0]["checkpoint"] == whole["checkpoint"]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert len(choices) > 10


@pytest.mark.parametrize("count", [1, 3])
def test_a_stop_string_never_shows(post, tokenizer, count):
    sampled = {**GREEDY, "temperature": 1.3, "seed": 5}
    text = post(**sampled).json()["choices"][0]["text"]
    windows = (text[start : start + count] for start in range(6, 40))
    stop = next(window for window in windows if "\ufffd" not in window)
    assert len(stop) == count
    whole = post(**sampled, stop=stop).json()["choices"][0]
    chunks = events_of(post(**sampled, stop=stop, stream=True))[:-1]
    streamed = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert streamed == whole["text"] == text[: text.index(stop)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_refused_stream_has_its_own_status(post):
    for fields, status in (({"gates": 2}, 400), ({"model": "gpt-4"}, 404), ({"n": 300}, 400)):
        response = post(**STREAM, **fields)
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_an_echo_without_tokens(post):
    for logprobs in (None, 0, 2):
        fields = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": logprobs}
        whole = post(**fields).json()
        assert whole["choices"][0]["text"] == PROMPT
        assert whole["usage"]["completion_tokens"] == 0
        chunks = events_of(post(**fields, stream=True))[:-1]
        choices = [chunk["choices"][0] for chunk in chunks]
        assert "".join(choice["text"] for choice in choices) == PROMPT
        found = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        wanted = whole["choices"][0]["logprobs"]
        assert found == ([wanted] if wanted else [])


def test_a_failure_in_a_stream_is_its_last_event(serving, make_service, make_engine, make_valve):
    engine = make_engine()
    valve = make_valve(engine)
    valve.open.set()
    with (
        serving(make_service(engine)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.completions.create(model="tiny", **STREAM)
        next(stream)
        valve.fail = True
        with pytest.raises(openai.APIError, match="RuntimeError") as failed:
            list(stream)
        assert failed.value.code == "engine_unavailable"
        response = httpx.post(f"{url}/v1/completions", json=STREAM)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1


def test_a_request_past_its_deadline_is_cancelled(
    make_service, make_engine, make_valve, post, wait_until
):
    engine = make_engine()
    valve = make_valve(engine)
    service = make_service(engine, request_timeout_s=0.2)
    for fields in (GREEDY, STREAM):
        response = post(service, **fields)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "request_timeout"
        assert "0.2 s" in response.json()["error"]["message"]
    valve.open.set()
    wait_until(lambda: not engine.has_work)
    assert valve.passes < 5


def test_a_stream_past_its_deadline_ends_with_an_error(
    make_service, make_engine, long_checkpoint, post, wait_until
):
    engine = make_engine(long_checkpoint)
    response = post(make_service(engine, request_timeout_s=0.5), **LONG, stream=True)
    *chunks, last = events_of(response)
    assert len(chunks) > 1
    assert last["error"]["code"] == "request_timeout"
    wait_until(lambda: not engine.has_work)


async def _leave(url: str, count: int) -> None:
    """Opens streams, reads the beginning of each, and closes them all."""
    limits = httpx.Limits(max_connections=count + 1)
    async with httpx.AsyncClient(timeout=20, limits=limits) as client:

        async def begin() -> tuple[httpx.Response, AsyncIterator[bytes]]:
            request = client.build_request(
                "POST", f"{url}/v1/completions", json={**LONG, "stream": True}
            )
            response = await client.send(request, stream=True)
            content = response.aiter_raw()  # kept: the connection ends with it
            await anext(content)
            return response, content

        streams = await asyncio.gather(*(begin() for _ in range(count)))
        assert (await client.get(f"{url}/health")).json()["active"] == count
        await asyncio.gather(*(response.aclose() for response, _ in streams))


def test_closing_fifty_streams_frees_their_rows(
    serving, make_service, make_engine, make_valve, long_checkpoint
):
    engine = make_engine(long_checkpoint, max_batch=50)
    valve = make_valve(engine)
    valve.open.set()
    with serving(make_service(engine)) as url:
        asyncio.run(_leave(url, 50))
        closed = time.monotonic()
        while (health := httpx.get(f"{url}/health").json())["active"] + health["waiting"]:
            assert time.monotonic() - closed < 2, health
            time.sleep(0.02)
        assert valve.passes < 1000  # of the 2000 that they asked for
        answer = httpx.post(f"{url}/v1/completions", json={**LONG, "max_tokens": 3})
        assert answer.json()["usage"]["completion_tokens"] == 3


def test_a_client_that_does_not_wait_for_its_answer_frees_its_rows(
    serving, make_service, make_engine, long_checkpoint
):
    engine = make_engine(long_checkpoint)
    with serving(make_service(engine)) as url:
        for path, body in (
            ("/v1/completions", {**LONG, "n": 4}),
            (
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2000, "n": 6},
            ),
        ):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + path, json={**body, "ignore_eos": True}, timeout=0.5)
            gone = time.monotonic()
            while (health := httpx.get(f"{url}/health").json())["active"] + health["waiting"]:
                assert time.monotonic() - gone < 2, health
                time.sleep(0.02)
