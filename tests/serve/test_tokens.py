"""Tokens of texts and conversations over HTTP, as vLLM's server gives them."""

from __future__ import annotations

import pytest


@pytest.fixture
def tokens(call):
    def of(path: str = "/tokenize", **body):
        return call("POST", path, json=body)

    return of


def test_a_text_and_back(tokens, tokenizer):
    text = "Question: naïve 東京"
    answer = tokens(prompt=text).json()
    ids = tokenizer.encode(text, bos=True)
    assert answer == {"count": len(ids), "max_model_len": 96, "tokens": ids, "token_strs": None}
    bare = tokens(prompt=text, add_special_tokens=False, return_token_strs=True).json()
    assert bare["tokens"] == ids[1:]
    assert len(bare["token_strs"]) == bare["count"] == len(ids) - 1
    assert tokens("/detokenize", tokens=ids).json() == {"prompt": text}
    assert tokens(prompt="a b " * 1000).json()["count"] > 96  # longer than the context


def test_a_conversation_is_the_prompt_of_its_completion(tokens, call):
    messages = [{"role": "user", "content": "7 + 5?"}]
    ids = tokens(messages=messages).json()["tokens"]
    body = {"messages": messages, "max_tokens": 1, "return_token_ids": True}
    chat = call("POST", "/v1/chat/completions", json=body).json()
    assert chat["prompt_token_ids"] == ids
    shorter = tokens(messages=messages, add_generation_prompt=False).json()["tokens"]
    assert shorter == ids[: len(shorter)]
    assert len(shorter) < len(ids)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"prompt": "a", "promt": 1}, "promt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [100_000]}, None),
    ],
)
def test_mistakes_are_named(tokens, error_of, path, body, param):
    assert error_of(tokens(path, **body), 400)["param"] == param


def test_another_models_tokens(tokens, error_of):
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert error_of(tokens(path, model="other", **body), 404)["code"] == "model_not_found"
        assert tokens(path, model="tiny", **body).status_code == 200
