"""Streams on the wire: events, and errors after the beginning."""

from __future__ import annotations

import httpx
import openai
import pytest

PROMPT = "Question: Tom has 7 apples"
GREEDY = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0}
STREAM = {**GREEDY, "stream": True}
LONG = {"prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": True}


def test_events_are_chunks_and_then_done(post, events_of):
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
def test_a_stop_string_never_shows(post, events_of, tokenizer, count):
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


def test_a_stream_past_its_deadline_ends_with_an_error(
    make_service, make_engine, long_checkpoint, post, events_of, wait_until
):
    engine = make_engine(long_checkpoint)
    response = post(make_service(engine, request_timeout_s=0.5), **LONG, stream=True)
    *chunks, last = events_of(response)
    assert len(chunks) > 1
    assert last["error"]["code"] == "request_timeout"
    wait_until(lambda: not engine.has_work)
