"""With keys set nothing answers without one but the open routes."""

from __future__ import annotations

import asyncio
import hmac

import httpx
import pytest

from mhc_model import ConfigError
from serve import auth
from serve.app import create_app
from serve.auth import VARIABLE, ApiKeys, is_open, load_keys
from serve.monitoring import Observers, RequestRecord

KEY, OTHER = "sk-first-key-1", "sk-second-key-2"
BODY = {"prompt": "Question: Tom", "max_tokens": 1, "temperature": 0}


class Records(Observers):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[RequestRecord] = []

    def finished(self, record: RequestRecord) -> None:
        self.seen.append(record)


@pytest.fixture
def records():
    return Records()


@pytest.fixture
def app(make_service, records):
    async def metrics() -> bytes:
        return b"a 1\n"

    service = make_service(observer=records)
    return create_app(service, keys=ApiKeys([KEY, OTHER]), metrics=metrics)


def send(app, *calls, headers=None):
    """Answers to (method, path, arguments)."""

    async def all_of_them():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [
                await client.request(method, path, headers=headers, **arguments)
                for method, path, arguments in calls
            ]

    return asyncio.run(all_of_them())


def calls_of(app) -> list[tuple[str, str, dict]]:
    """Every route of the application with every method, known or not, and unknown paths."""
    paths = [path.replace("{model}", "tiny") for path in app.openapi()["paths"]]
    paths += ["/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"]
    paths += ["/v1/nothing", "/unknown/-/routes", "//", "/health/", "/ready/x", "/static", "/%2e"]
    paths += ["/HEALTH", "/static/../metrics", "/static/..%2fmetrics", "/v1/models/../../health"]
    methods = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH")
    closed = [path for path in paths if path not in ("/", "/health", "/ready", "/static")]
    return [(method, path, {}) for path in closed for method in methods]


def test_no_route_answers_without_a_key(app, records):
    calls = calls_of(app)
    assert {"/v1/completions", "/metrics", "/docs", "/openapi.json", "/v1/routing"} <= {
        path for _, path, _ in calls
    }
    for (method, path, _), answer in zip(calls, send(app, *calls), strict=True):
        if is_open(answer.request.url.path):
            continue  # the client resolves dots by itself
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"]
        if method != "HEAD":
            assert answer.json()["error"]["code"] == "invalid_api_key"
    assert {record.outcome for record in records.seen if record.status == 401} == {"refused"}
    assert len(records.seen) == len(calls)


def test_the_open_routes_need_none(app):
    for answer in send(app, ("GET", "/health", {}), ("GET", "/ready", {})):
        assert answer.status_code == 200


def test_each_key_opens_and_nothing_near_it_does(app):
    for key in (KEY, OTHER):
        headers = {"Authorization": f"Bearer {key}"}
        (answer,) = send(app, ("POST", "/v1/completions", {"json": BODY}), headers=headers)
        assert answer.status_code == 200
        (answer,) = send(app, ("GET", "/metrics", {}), headers=headers)
        assert answer.text == "a 1\n"
    (answer,) = send(app, ("GET", "/v1/models", {}), headers={"authorization": f"bearer  {KEY}"})
    assert answer.status_code == 200
    wrong = [KEY[:-1], KEY + "x", KEY.upper(), f"{KEY} {KEY}", f"{KEY},{OTHER}", "", "Bearer"]
    for value in [f"Bearer {key}" for key in wrong] + [KEY, f"Basic {KEY}", "Bearer", ""]:
        (answer,) = send(app, ("GET", "/v1/models", {}), headers={"Authorization": value})
        assert answer.status_code == 401, value
        assert KEY not in answer.text
    twice = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer x")]
    (answer,) = send(app, ("GET", "/v1/models", {}), headers=twice)
    assert answer.status_code == 401


def test_all_keys_are_compared_in_constant_time(monkeypatch):
    compared = []
    real = hmac.compare_digest

    def compare(one, other):
        compared.append((one, other))
        return real(one, other)

    keys = ApiKeys([KEY, OTHER])
    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    for key, known in ((KEY, True), (OTHER, True), ("x", False)):
        compared.clear()
        assert (key.encode() in keys) is known
        assert len(compared) == 2
        assert all(len(one) == len(other) == 32 for one, other in compared)
    assert not any(KEY in str(value) for value in vars(keys).values())


def test_keys_come_from_the_file_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not load_keys(None)
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n  {KEY}  \n#{OTHER}\n", encoding="utf-8")
    keys = load_keys(path)
    assert KEY.encode() in keys
    assert OTHER.encode() not in keys
    assert f"#{OTHER}".encode() not in keys
    monkeypatch.setenv(VARIABLE, f"{OTHER}, third-key-3")
    both = load_keys(path)
    assert all(key.encode() in both for key in (KEY, OTHER, "third-key-3"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "no key"), (b"# only\n\n", "no key"), (b"secret\xff", "UTF-8"), (b"short", "key 1")],
)
def test_a_file_without_usable_keys_is_an_error_that_tells_none(
    tmp_path, monkeypatch, content, reason
):
    monkeypatch.delenv(VARIABLE, raising=False)
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as error:
        load_keys(path)
    assert "secret" not in str(error.value)
    assert "short" not in str(error.value).replace(str(path), "")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(tmp_path / "missing")
    monkeypatch.setenv(VARIABLE, " , ")
    with pytest.raises(ConfigError, match=VARIABLE):
        load_keys(None)


def test_only_these_paths_are_open():
    for path in ("/", "/health", "/ping", "/ready", "/static/page.js", "/static/a/b.css"):
        assert is_open(path)
    for path in ("", "/health/", "/healthz", "/static", "/static/../x", "/metrics", "//", "/docs"):
        assert not is_open(path)
