"""Whatever is sent, the answer is OpenAI's envelope, and the server goes on."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.app import MAX_BODY_BYTES
from serve.completions import CompletionRequest

GOOD = {"prompt": "Question:", "max_tokens": 2, "temperature": 0}
LIMITS = ("1 number", "3 (one per layer)", "6 (one per sublayer)", "[0, 1]", '"learned"')
JSON = {"Content-Type": "application/json"}


def error_of(response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) < 2100
    return error


BAD_GATES = [-0.1, 1.1, [0.5, 0.5], [0.5] * 7, [], "half", "0.5", True, [True], ["0.5"]]
BAD_GATES += [[None], [[0.5]], {"g": 1}, 10**400, "x" * 100_000]


@pytest.mark.parametrize("gates", BAD_GATES, ids=lambda gates: repr(gates)[:20])
def test_bad_gates_name_lengths_and_range(post, gates):
    error = error_of(post(**GOOD, gates=gates), 400)
    assert error["param"] == "gates"
    assert error["type"] == "invalid_request_error"
    for limit in LIMITS:
        assert limit in error["message"]


def test_policy_without_a_policy_says_how_to_get_one(post):
    error = error_of(post(**GOOD, gates="policy"), 400)
    assert error["param"] == "gates"
    assert "--policy" in error["message"]


BAD_FIELDS = {
    "prompt": [None, 1, True, [], [[]], ["a", 1], [1, "a"], [1.0], [True], [[1], []], {"a": 1}],
    "max_tokens": [0, -1, 1.0, 1.5, "2", True, [1]],
    "temperature": [-0.1, 2.1, "0", True, 1e400, [0]],
    "top_p": [0, 1.1, "1", True],
    "top_k": [-1, 1.5, 2**40, "1", True],
    "seed": [-1, 2**63, 1.5, "1", True],
    "stop": ["", [""], 1, ["a", 1], ["a"] * 17, "x" * 2000, {"a": "b"}],
    "stop_token_ids": [1, "a", [-1], [True], [1.0], [1] * 17, [2**31]],
    "ignore_eos": [1, "true"],
    "n": [0, 129, "1", True, 1.0],
    "best_of": [0, 2, "1", True],
    "stream": [1, "true"],
    "stream_options": [True, {}, {"include_usage": True}, {"include_usage": 1}, {"include": True}],
    "echo": [1, "true"],
    "logprobs": [21, -1, True, "0"],
    "suffix": ["x", 1],
    "logit_bias": [{"50": 1}, [], "{}"],
    "presence_penalty": [0.1, -1, "0"],
    "frequency_penalty": [0.1, 2, True],
    "user": [1, ["a"]],
    "model": [1, ["tiny"]],
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_bad_fields_are_named(post, field):
    for value in BAD_FIELDS[field]:
        body = json.dumps({**GOOD, field: value}).replace("Infinity", "1e400")
        error = error_of(post(body), 400)
        assert error["param"] == field, value
        assert field in error["message"]


@pytest.fixture
def post(call):
    """`post(body)` with raw bytes, or `post(**fields)`."""

    def send(body: str | bytes | None = None, headers: dict | None = None, **fields):
        content = json.dumps(fields) if body is None else body
        headers = JSON if headers is None else headers
        return call("POST", "/v1/completions", content=content, headers=headers)

    return send


def test_unknown_fields_are_named(post):
    error = error_of(post(**GOOD, temprature=1), 400)
    assert error["param"] == "temprature"
    assert "did you mean 'temperature'" in error["message"]
    error = error_of(post(**GOOD, zzz=None, zz=1), 400)
    assert error["param"] == "zz"
    assert error_of(post(json.dumps({**GOOD, "\ud800": 1})), 400)


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
def test_malformed_bodies(post, body):
    error = error_of(post(body), 400)
    assert error["type"] == "invalid_request_error"
    assert "JSON" in error["message"]


def test_body_needs_the_json_content_type(post):
    error = error_of(post(json.dumps(GOOD), headers={"Content-Type": "text/plain"}), 400)
    assert "Content-Type: application/json" in error["message"]


def test_large_bodies_are_refused(post):
    error = error_of(post(json.dumps({"prompt": "a" * MAX_BODY_BYTES})), 413)
    assert str(MAX_BODY_BYTES) in error["message"]


def test_context_limit_is_named(post):
    error = error_of(post(prompt=[1] * 90, max_tokens=7), 400)
    assert error["code"] == "context_length_exceeded"
    assert "96" in error["message"]
    assert "97" in error["message"]
    assert post(prompt=[1] * 90, max_tokens=6).status_code == 200


def test_tokens_outside_the_vocabulary(post):
    for token in (-1, 300, 10**30):
        assert "vocabulary" in error_of(post(prompt=[[1], [token]]), 400)["message"]


def test_too_many_prompts_for_the_queue(post):
    error = error_of(post(**{**GOOD, "prompt": ["a"] * 261}), 400)
    assert "260" in error["message"]


def test_unknown_model_route_and_method(call, post):
    error = error_of(post(**GOOD, model="gpt-4"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    error_of(call("GET", "/v1/nothing"), 404)
    response = call("GET", "/v1/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


def test_null_counts_as_not_given_and_zero_stays_zero():
    fields = dict.fromkeys(CompletionRequest.model_fields)
    request = CompletionRequest.model_validate({**fields, "prompt": "a"})
    assert (request.max_tokens, request.temperature, request.top_p) == (16, 1.0, 1.0)
    assert CompletionRequest(prompt="a", temperature=0, seed=0).temperature == 0.0


texts = st.text(st.characters(exclude_categories=()), max_size=5)  # lone surrogates too
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=8,
)


def test_no_body_is_a_server_error(make_service, client_of):
    service = make_service()
    fields = sorted(set(CompletionRequest.model_fields) - {"max_tokens"})

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(changes=st.dictionaries(st.sampled_from(fields) | texts, values, max_size=3))
    def check(changes: dict) -> None:
        async def one():
            async with client_of(service) as client:
                body = json.dumps({**GOOD, **changes})
                return await client.post("/v1/completions", content=body, headers=JSON)

        response = asyncio.run(one())
        assert response.status_code in (200, 400, 404), response.text
        if response.status_code != 200:
            error_of(response, response.status_code)

    check()
    assert service.failure is None
