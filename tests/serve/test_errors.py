"""Whatever is sent, the answer is OpenAI's envelope, and the server goes on."""

from __future__ import annotations

import asyncio
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.completions import CompletionRequest

GOOD = {"prompt": "Question:", "max_tokens": 2, "temperature": 0}


def test_unknown_model_route_and_method(call, post, error_of):
    error = error_of(post(**GOOD, model="gpt-4"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    error_of(call("GET", "/v1/nothing"), 404)
    response = call("GET", "/v1/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


texts = st.text(st.characters(exclude_categories=()), max_size=5)  # lone surrogates too
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=8,
)


def test_no_body_is_a_server_error(make_service, client_of, error_of):
    service = make_service()
    headers = {"Content-Type": "application/json"}
    fields = sorted(set(CompletionRequest.model_fields) - {"max_tokens"})

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(changes=st.dictionaries(st.sampled_from(fields) | texts, values, max_size=3))
    def check(changes: dict) -> None:
        async def one():
            async with client_of(service) as client:
                body = json.dumps({**GOOD, **changes})
                return await client.post("/v1/completions", content=body, headers=headers)

        response = asyncio.run(one())
        assert response.status_code in (200, 400, 404), response.text
        if response.status_code != 200:
            error_of(response, response.status_code)

    check()
    assert service.failure is None
