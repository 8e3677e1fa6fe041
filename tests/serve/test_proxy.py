"""What clients see where Serve's proxy fails. The faults are scripted here as the proxy was seen to
show them; test_replicas.py has the real one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from serve.basics import JsonLog
from serve.proxy import ATTEMPTS, GRACE_S, MAX_BODY_BYTES, Front

JSON = [(b"content-type", b"application/json")]
TEXT = [(b"content-type", b"text/plain; charset=utf-8")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


def start(status: int, headers) -> dict:
    return {"type": "http.response.start", "status": status, "headers": headers}


def chunk(body: bytes, more: bool = False) -> dict:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Proxy:
    """Answers each attempt with the next script; keeps the scopes and bodies that it saw."""

    def __init__(self, *scripts) -> None:
        self.scripts = list(scripts)
        self.scopes: list[dict] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope, receive, send) -> None:
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        script = self.scripts.pop(0)
        for message in await script(receive) if callable(script) else script:
            await send(message)


def exchange(proxy, body: tuple[bytes, ...] = (b"{}",), path="/v1/completions", **options) -> list:
    """All messages that a client gets for one request."""
    headers, timeout_s = options.pop("headers", []), options.pop("timeout_s", 60.0)
    log = options.pop("log", JsonLog("off"))
    front = Front(proxy, timeout_s, log, options.pop("ray_routes", False))
    sent: list[dict] = []
    parts = [
        {"type": "http.request", "body": part, "more_body": place < len(body) - 1}
        for place, part in enumerate(body)
    ]
    gone = options.pop("gone", False)

    async def receive() -> dict:
        if parts:
            return parts.pop(0)
        if not gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(asyncio.wait_for(front(scope, receive, send), 20))
    return sent


def header(message: dict, name: bytes) -> list[bytes]:
    return [value for key, value in message["headers"] if key.lower() == name]


OK = [start(200, JSON), chunk(b"{}")]


def test_a_request_whose_replica_died_goes_to_another_with_its_whole_body():
    proxy = Proxy([], [], OK)
    sent = exchange(proxy, body=(b"abc", b"def"))
    assert sent[0]["status"] == 200
    assert [m["body"] for m in sent[1:]] == [b"{}"]
    assert proxy.bodies == [b"abcdef"] * 3


def test_after_the_last_attempt_it_is_a_503_in_the_envelope_and_logged(tmp_path):
    proxy = Proxy(*[[]] * ATTEMPTS, OK)
    path = tmp_path / "log"
    first, body = exchange(proxy, log=JsonLog(str(path)), headers=[(b"x-request-id", b"r1")])
    assert first["status"] == 503
    assert header(first, b"retry-after") == [b"5"]
    error = json.loads(body["body"])["error"]
    assert (error["type"], error["code"]) == ("server_error", "engine_unavailable")
    assert proxy.scripts == [OK]
    entry = json.loads(path.read_text())
    assert (entry["id"], entry["status"], entry["outcome"]) == ("r1", 503, "unavailable")


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (404, 503, "engine_unavailable"),  # no application: it is starting or stopping
        (408, 504, "timeout"),
        (429, 429, "server_overloaded"),
        (503, 503, "engine_unavailable"),
    ],
)
def test_what_the_proxy_says_itself_comes_in_the_envelope(status, told, code):
    first, body = exchange(Proxy([start(status, TEXT), chunk(b"Path '/' not", True), chunk(b"")]))
    assert first["status"] == told
    assert header(first, b"content-length") == [str(len(body["body"])).encode()]
    assert json.loads(body["body"])["error"]["code"] == code


def test_what_the_service_says_is_left_alone():
    for status in (400, 404, 429, 500, 503):
        first, body = exchange(Proxy([start(status, JSON), chunk(b'{"error":1}')]))
        assert (first["status"], body["body"]) == (status, b'{"error":1}')


def test_a_stream_cut_off_ends_with_an_error_event_and_is_not_repeated():
    proxy = Proxy([start(200, EVENTS), chunk(b"data: 1\n\nda", True)], OK)
    sent = exchange(proxy)
    assert proxy.scripts == [OK]
    text = b"".join(message["body"] for message in sent[1:]).decode()
    assert not sent[-1].get("more_body", False)
    last = [event for event in text.split("\n\n") if event][-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "engine_unavailable"
    assert "[DONE]" not in text


def test_a_whole_stream_stays_as_it_is():
    messages = [start(200, EVENTS), chunk(b"data: 1\n\n", True), chunk(b"data: [DONE]\n\n")]
    sent = exchange(Proxy(messages))
    assert [message["body"] for message in sent[1:]] == [m["body"] for m in messages[1:]]


def test_another_response_cut_off_is_not_made_whole():
    sent = exchange(Proxy([start(200, JSON), chunk(b'{"a', True)]))
    assert len(sent) == 2  # the server then closes the connection


def test_a_client_that_has_gone_is_not_served_again():
    async def until_gone(receive):
        assert (await receive())["type"] == "http.disconnect"
        return []

    proxy = Proxy(until_gone, OK)
    assert exchange(proxy, gone=True) == []
    assert proxy.scripts == [OK]


def test_the_deadline_holds_over_all_attempts():
    async def half_a_second(receive):
        await asyncio.sleep(0.5)
        return []

    proxy = Proxy(half_a_second, half_a_second, half_a_second)
    first, _ = exchange(proxy, timeout_s=0.7 - GRACE_S)
    assert first["status"] == 504
    limits = [float(header(scope, b"x-request-timeout-seconds")[0]) for scope in proxy.scopes]
    assert len(limits) == 2
    assert 0.6 < limits[0] <= 0.7
    assert limits[1] < 0.21


def test_request_ids_are_sane_and_sent_once():
    def told(*given: bytes) -> tuple[bytes, bytes]:
        own = [*JSON, (b"x-request-id", b"by the app"), (b"X-Request-ID", b"by serve")]
        proxy = Proxy([start(200, own), chunk(b"{}")])
        first = exchange(proxy, headers=[(b"x-request-id", value) for value in given])[0]
        (response,) = header(first, b"x-request-id")
        (request,) = header(proxy.scopes[0], b"x-request-id")
        assert request == response
        return response

    assert told(b"my id-1") == b"my id-1"
    assert told(b"a" * 128) == b"a" * 128
    for bad in ([], [b""], [b"a" * 129], [b"caf\xc3\xa9"], [b"a\tb"], [b" "], [b"a", b"b"]):
        made = told(*bad)
        assert made not in bad
        assert len(made) == 36
    assert told() != told()


def test_clients_do_not_steer_the_proxy():
    proxy = Proxy(OK)
    names = [b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id"]
    names += [b"serve_multiplexed_model_id", b"x_session_id"]
    exchange(proxy, headers=[(name, b"\xff0") for name in names])
    seen = dict(proxy.scopes[0]["headers"])
    assert float(seen.pop(b"x-request-timeout-seconds")) > 1
    assert set(seen) == {b"x-request-id"}


def test_rays_own_routes_are_closed_unless_asked_for():
    closed, opened = Proxy(OK), Proxy(OK)
    exchange(closed, path="/-/routes")
    exchange(opened, path="/-/routes", ray_routes=True)
    assert closed.scopes[0]["path"] == "/unknown/-/routes"
    assert opened.scopes[0]["path"] == "/-/routes"


def test_no_more_is_read_than_a_body_may_have():
    async def read_on(receive):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.05)
        return [start(413, JSON), chunk(b"{}")]

    class Reader(Proxy):
        async def __call__(self, scope, receive, send) -> None:
            await receive()
            for message in await read_on(receive):
                await send(message)

    assert exchange(Reader(), body=(b"a" * (MAX_BODY_BYTES + 1), b"b"))[0]["status"] == 413


def test_the_proxy_loads_the_standard_library_only():
    """The processes that import it, Serve's proxies, are small."""
    program = """
import json, sys
before = set(sys.modules)
import serve.proxy
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "serve" in loaded
    assert loaded - {"serve"} <= sys.stdlib_module_names
