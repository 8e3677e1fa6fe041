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
    "top_k": [-2, 1.5, 2**40, "1", True],
    "seed": [-(2**63) - 1, 2**63, 1.5, "1", True],
    "stop": ["", [""], 1, ["a", 1], ["a"] * 17, "x" * 2000, {"a": "b"}],
    "stop_token_ids": [1, "a", [-1], [True], [1.0], [1] * 17, [2**31]],
    "ignore_eos": [1, "true"],
    "n": [0, 129, "1", True, 1.0],
    "best_of": [0, 129, "1", True],
    "stream": [1, "true"],
    "stream_options": [True, {}, {"include_usage": True}, {"include_usage": 1}, {"include": True}],
    "echo": [1, "true"],
    "logprobs": [21, -1, True, "0"],
    "suffix": ["x", 1],
    "logit_bias": [{"50": 101}, {"x": 1}, {"-1": 1}, {"1": True}, {"1": "1"}, {"300": 1}, [], "{}"],
    "presence_penalty": [2.1, -2.1, "0"],
    "frequency_penalty": [2.1, -2.1, True],
    "repetition_penalty": [0, -1, 101, "1"],
    "min_p": [-0.1, 1.1, "0"],
    "min_tokens": [-1, 3, 1.5, "1"],
    "allowed_token_ids": [[], [-1], [True], [300], 1, "a"],
    "prompt_logprobs": [-1, 21, "1", True],
    "return_token_ids": [1, "true"],
    "truncate_prompt_tokens": [-2, 96, "1", True],
    "truncation_side": ["middle", 1],
    "add_special_tokens": [1, "true"],
    "response_format": [
        "json",
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_object", "json_schema": {"schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "a"}},
    ],
    "structured_outputs": [
        {},
        {"regex": "a", "choice": ["a"]},
        {"choice": []},
        {"choice": [1]},
        {"regex": 1},
        {"json_object": False},
        {"whitespace": "a"},
    ],
    "skip_special_tokens": [False, 1],
    "use_beam_search": [True, 0],
    "bad_words": [["a"]],
    "user": [1, ["a"]],
    "metadata": [1, "a"],
    "store": [1, "true"],
    "model": [1, ["tiny"]],
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_bad_fields_are_named(post_bytes, error_of, field):
    for value in BAD_FIELDS[field]:
        body = json.dumps({**GOOD, field: value}).replace("Infinity", "1e400")
        error = error_of(post_bytes(body), 400)
        assert error["param"] in (field, None), value  # null: the engine knows the vocabulary
        assert field in error["message"]


@pytest.mark.parametrize(
    "structure",
    [
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"json": "{"}},
        {"structured_outputs": {"grammar": "start: nothing"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
    ],
)
def test_a_form_that_cannot_be_followed_is_the_callers_mistake(post, error_of, structure):
    assert "the answer's form is refused" in error_of(post(**GOOD, **structure), 400)["message"]


def test_fields_that_do_not_go_together(post, error_of):
    for fields, param in (
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
    ):
        error = error_of(post(**GOOD, **fields), 400)
        assert error["param"] == param
        assert param in error["message"]


def test_harmless_fields_change_nothing(post):
    plain = post(**GOOD).json()["choices"]
    harmless = {
        "metadata": {"run": "1"},
        "store": True,
        "service_tier": "auto",
        "parallel_tool_calls": False,
        "request_id": "mine",
        "user": "me",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "priority": 0,
        "skip_special_tokens": True,
        "use_beam_search": False,
        "suffix": "",
        "top_k": -1,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "presence_penalty": 0,
        "best_of": 1,
        "seed": -1,
    }
    assert post(**GOOD, **harmless).json()["choices"] == plain
    for name, value in harmless.items():
        assert post(**GOOD, **{name: value}).json()["choices"] == plain, name


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
