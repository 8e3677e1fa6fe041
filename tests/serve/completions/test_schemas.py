"""What bodies of completions may hold; what else they hold is named."""

from __future__ import annotations

import json

import pytest

from serve.completions import CompletionRequest

GOOD = {"prompt": "Question:", "max_tokens": 2, "temperature": 0}

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
def test_bad_fields_are_named(post_bytes, error_of, field):
    for value in BAD_FIELDS[field]:
        body = json.dumps({**GOOD, field: value}).replace("Infinity", "1e400")
        error = error_of(post_bytes(body), 400)
        assert error["param"] == field, value
        assert field in error["message"]


def test_unknown_fields_are_named(post, post_bytes, error_of):
    error = error_of(post(**GOOD, temprature=1), 400)
    assert error["param"] == "temprature"
    assert "did you mean 'temperature'" in error["message"]
    error = error_of(post(**GOOD, zzz=None, zz=1), 400)
    assert error["param"] == "zz"
    assert error_of(post_bytes(json.dumps({**GOOD, "\ud800": 1})), 400)


def test_null_counts_as_not_given_and_zero_stays_zero():
    fields = dict.fromkeys(CompletionRequest.model_fields)
    request = CompletionRequest.model_validate({**fields, "prompt": "a"})
    assert (request.max_tokens, request.temperature, request.top_p) == (16, 1.0, 1.0)
    assert CompletionRequest(prompt="a", temperature=0, seed=0).temperature == 0.0
