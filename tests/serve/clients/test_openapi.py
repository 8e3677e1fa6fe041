"""The OpenAPI document says what the server does: requests made from it, good and bad ones."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import CHECKS, load_all_checks  # noqa: E402

load_all_checks()
# Not expressible in a schema: prompt and max_tokens must fit into the context together, n times
# the prompts into the queue, and gates have 1, L or 2L numbers.
UNDECIDABLE = CHECKS.get_by_names(["positive_data_acceptance"])


@pytest.mark.parametrize("mode", GenerationMode)
def test_answers_are_those_of_the_document(live, mode):
    document = schemathesis.openapi.from_url(f"{live}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 6
    for operation in operations:
        if mode.is_negative and operation.method == "get":
            continue  # nothing that could be wrong

        @settings(
            max_examples=25 if operation.method == "post" else 5,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case) -> None:
            case.call_and_validate(excluded_checks=UNDECIDABLE)

        check()


def test_the_document_lists_every_route_and_no_422(live):
    document = httpx.get(f"{live}/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/{model}"} <= set(
        document["paths"]
    )
    for path in document["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"]
            assert all(response["content"] for response in operation["responses"].values())
