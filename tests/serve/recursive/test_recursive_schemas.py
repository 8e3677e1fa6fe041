"""What bodies of POST /v1/recursive may hold; what else they hold is named."""

from __future__ import annotations

import pytest


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
