"""Calls that end early: past their deadline, or when their client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest

PROMPT = "Question: Tom has 7 apples"
GREEDY = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0}
STREAM = {**GREEDY, "stream": True}
LONG = {"prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": True}


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
