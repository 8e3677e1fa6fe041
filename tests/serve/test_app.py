"""Bodies that are none get a 4xx with its reason, and the server goes on; small routes, CORS."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import httpx
import pytest

from serve.app import MAX_BODY_BYTES, create_app
from serve.auth import ApiKeys

JSON = {"Content-Type": "application/json"}
COMPLETION: dict[str, Any] = {"prompt": "Question:", "max_tokens": 2, "temperature": 0}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
WRONG = [{"a": 1}, [[[]]], [None], 1e308, -1, 10**30, "\x00", "x" * 5000, {"": {}}, [{}], True]
BYTES = [b"\xff", b"\xc3(", b"\xe2\x82", b"\xed\xa0\x80", b"\x00", b"\xf8\x88\x80\x80\x80"]
CONSTANTS = ["NaN", "Infinity", "-Infinity", "1e", "01", "+1", ".5", "nul", "True", "undefined"]


def good(rng: random.Random) -> dict[str, Any]:
    return dict(rng.choice([COMPLETION, CHAT]))


def wrong_type(rng: random.Random) -> bytes:
    """A value that the field does not take; `prompt` and `messages` always break."""
    body = good(rng)
    field = rng.choice(["prompt", "messages", "gates", "stop", "n", "stream", "logit_bias", "seed"])
    values = [value for value in WRONG if not (field == "prompt" and isinstance(value, str))]
    if field in ("n", "seed", "stream"):  # some of the wrong ones are right there
        values = [value for value in values if not isinstance(value, bool | int)]
    if field == "stop":
        values = [value for value in values if value != "\x00"]
    body[field] = rng.choice(values)
    return json.dumps(body).encode()


def not_a_number(rng: random.Random) -> bytes:
    body = {**good(rng), rng.choice(["temperature", "top_p", "gates", "seed"]): "HERE"}
    return json.dumps(body).replace('"HERE"', rng.choice(CONSTANTS)).encode()


def huge(rng: random.Random) -> bytes:
    """Lists and numbers larger than anything that fits."""
    size = rng.choice([1001, 5000, 50_000])
    kind = rng.randrange(6)
    if kind == 0:
        return json.dumps({**COMPLETION, "prompt": ["a"] * size}).encode()
    if kind == 1:
        return json.dumps({**COMPLETION, "prompt": [1] * size}).encode()
    if kind == 2:
        return json.dumps({**good(rng), "gates": [0.5] * size}).encode()
    if kind == 3:
        return json.dumps({**good(rng), "stop": ["a"] * size}).encode()
    if kind == 4:
        return json.dumps({**CHAT, "messages": CHAT["messages"] * size}).encode()
    return json.dumps({**good(rng), "max_tokens": "HERE"}).replace('"HERE"', "9" * size).encode()


def bad_utf8(rng: random.Random) -> bytes:
    body = json.dumps({**good(rng), "user": "HERE"}).encode()
    return body.replace(b"HERE", rng.choice(BYTES[:-2] if rng.random() < 0.5 else BYTES))


def nested(rng: random.Random) -> bytes:
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    depth = rng.choice([5, 100, 190, 1000, 100_000])
    inner = f"{opening * depth}1{closing * depth * rng.randrange(2)}"
    field = rng.choice(["prompt", "gates", "messages", "stop", "logit_bias", "stream_options"])
    return json.dumps({**good(rng), field: "HERE"}).replace('"HERE"', inner).encode()


def cut(rng: random.Random) -> bytes:
    body = json.dumps(good(rng)).encode()
    return body[: rng.randrange(len(body) - 1)]


def noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 200))


def unknown(rng: random.Random) -> bytes:
    name = "".join(chr(rng.choice([*range(32, 127), 0xE9, 0x4E00])) for _ in range(8))
    return json.dumps({**good(rng), name: rng.choice([0, "a", [1]])}).encode()


KINDS: list[Callable[[random.Random], bytes]] = [
    wrong_type, not_a_number, huge, bad_utf8, nested, cut, noise, unknown
]  # fmt: skip


@pytest.mark.timeout(120)
def test_a_thousand_malformed_bodies(live):
    """Over a real socket."""
    rng = random.Random(20261125)
    with httpx.Client(base_url=live, timeout=30) as client:
        for number in range(1000):
            kind = KINDS[number % len(KINDS)]
            body = kind(rng)
            path = "/v1/chat/completions" if b'"messages"' in body else "/v1/completions"
            response = client.post(path, content=body, headers=JSON)
            shown = f"{number} {kind.__name__} {body[:200]!r}: {response.text[:300]}"
            assert 400 <= response.status_code < 500, shown
            assert response.status_code != 429, shown
            assert response.json()["error"]["message"], shown
            assert response.headers["x-request-id"]
        answer = client.post("/v1/completions", json=COMPLETION)
        assert answer.status_code == 200
        assert client.get("/health").json()["active"] == 0


def test_ten_megabytes(live):
    with httpx.Client(base_url=live, timeout=30) as client:
        for body in (b"a" * (10 << 20), json.dumps({"prompt": "a" * (10 << 20)}).encode()):
            response = client.post("/v1/completions", content=body, headers=JSON)
            assert response.status_code == 413
            assert response.json()["error"]["type"] == "invalid_request_error"
        assert client.post("/v1/completions", json=COMPLETION).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x"]
)
def test_other_content_types(live, kind):
    body = json.dumps(COMPLETION).encode()
    response = httpx.post(f"{live}/v1/completions", content=body, headers={"Content-Type": kind})
    assert response.status_code in (400, 415)
    assert "application/json" in response.json()["error"]["message"]


MALFORMED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"prompt"',
    b"{'prompt': 'a'}",
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "gates": Infinity}',
    b'{"prompt": "a", "gates": [-Infinity]}',
    b'{"prompt": "\xff"}',
    b"\xff\xfe",
    b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}",
    b'{"prompt": ' + b"[" * 100_000,
    b'{"prompt": "a", "gates": ' + b"[" * 900 + b"]" * 900 + b"}",
    rb'{"prompt": "\ud800"}',
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:25]))
def test_malformed_bodies(post_bytes, error_of, body):
    error = error_of(post_bytes(body), 400)
    assert error["type"] == "invalid_request_error"
    assert "JSON" in error["message"]


def test_body_needs_the_json_content_type(post_bytes, error_of):
    error = error_of(post_bytes(json.dumps(COMPLETION), "text/plain"), 400)
    assert "Content-Type: application/json" in error["message"]


def test_large_bodies_are_refused(post_bytes, error_of):
    error = error_of(post_bytes(json.dumps({"prompt": "a" * MAX_BODY_BYTES})), 413)
    assert str(MAX_BODY_BYTES) in error["message"]


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready", "/version", "/v1/models", "/docs"])
def test_head_is_get_without_the_body(call, path):
    got, head = call("GET", path), call("HEAD", path)
    assert got.status_code == head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == got.headers["content-length"]
    assert call("HEAD", "/nowhere").status_code == 404
    assert call("HEAD", "/v1/completions").status_code == 405


def test_the_version_is_the_packages(call):
    assert call("GET", "/version").json() == {"version": version("mhc-gates")}
    assert call("GET", "/openapi.json").json()["info"]["version"] == version("mhc-gates")


def test_ping_needs_no_key_and_the_version_does(make_service):
    async def statuses():
        app = create_app(make_service(), keys=ApiKeys(["secret-key"]))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [(await client.get(path)).status_code for path in ("/ping", "/version", "/docs")]

    assert asyncio.run(statuses()) == [200, 401, 401]


def test_pages_elsewhere_may_call_only_where_the_operator_says_so(make_service):
    ask = {
        "Origin": "http://app.test",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }

    async def answers(origins, origin):
        app = create_app(make_service(), keys=ApiKeys(["secret-key"]), origins=origins)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            headers = {**ask, "Origin": origin}
            before = await client.options("/v1/completions", headers=headers)
            refused = await client.post("/v1/completions", headers={"Origin": origin}, json={})
            return before, refused

    allowed = "access-control-allow-origin"
    for origins, origin, shown in (
        ([], "http://app.test", None),
        (["http://app.test"], "http://app.test", "http://app.test"),
        (["http://app.test"], "http://other.test", None),
        (["*"], "http://other.test", "*"),
    ):
        before, refused = asyncio.run(answers(origins, origin))
        assert before.headers.get(allowed) == shown
        assert refused.status_code == 401  # the keys stay what guards the server
        assert refused.headers.get(allowed) == shown
        if shown:
            assert before.status_code == 200
            assert "authorization" in before.headers["access-control-allow-headers"]


def test_the_routes_description_loads_nothing_from_elsewhere(call):
    page = call("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("<!doctype html>", "")
    assert call("GET", "/redoc").status_code == 404
