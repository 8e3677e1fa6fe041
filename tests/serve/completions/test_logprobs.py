"""Log-probabilities: those of the engine, in places where harnesses look for them."""

from __future__ import annotations

import json

import pytest
import torch

from mhc_model import Engine

PROMPT = "Question: Tom has 7 apples"
GREEDY = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}


def test_logprobs_of_the_chosen_tokens(post, alone):
    choice = post(**GREEDY, logprobs=0).json()["choices"][0]
    expected = alone(PROMPT, max_tokens=12, logprobs=True)
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == pytest.approx(list(expected.logprobs))
    assert "".join(logprobs["tokens"]) == choice["text"]
    for piece, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset : offset + len(piece)] == piece


def test_a_text_of_a_model_without_a_start_keeps_its_first_token(
    post, make_service, make_engine, startless_checkpoint
):
    """It is the text's own: with echo it comes back, with nothing before it that scores it."""
    service = make_service(make_engine(startless_checkpoint))
    tokens = service.tokenizer.encode("the cat sat")
    body = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    for stream in (False, True):
        given = []
        for prompt in ("the cat sat", tokens):
            response = post(service, prompt=prompt, stream=stream, **body)
            if stream:
                chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
                pieces = [chunk["choices"][0] for chunk in chunks]
                logprobs = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
                text = "".join(piece["text"] for piece in pieces)
                given.append((text, [entry for each in logprobs for entry in each["tokens"]]))
            else:
                choice = response.json()["choices"][0]
                given.append((choice["text"], choice["logprobs"]["tokens"]))
                assert choice["logprobs"]["token_logprobs"][0] is None
                assert choice["logprobs"]["text_offset"][0] == 0
        assert given[0] == given[1]
        assert given[0][0].startswith("the cat sat")
        assert len(given[0][1]) == len(tokens) + 1


def test_a_scored_prompt_has_one_entry_more_also_at_a_documents_end(
    post, make_service, tiny_model, tokenizer
):
    """Harnesses drop the last entry: it has to be there where the model would end the document."""
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=16)
    with torch.no_grad():  # now it likes to end
        model.head.weight[tokenizer.eos_id] *= -1.5
    service = make_service(Engine(model, tokenizer, checkpoint_hash="0" * 64))
    prompts = [[5, i, 7, 8] for i in range(64)]
    body = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1}
    choices = post(service, **body).json()["choices"]
    ending = [choice["index"] for choice in choices if choice["finish_reason"] == "stop"]
    assert 0 < len(ending) < 64
    answer = post(service, **body, echo=True).json()
    logprobs = [choice["logprobs"] for choice in answer["choices"]]
    assert {len(entries) for each in logprobs for entries in each.values()} == {5}
    last = logprobs[ending[0]]
    assert last["token_logprobs"][0] is last["top_logprobs"][0] is None
    assert list(last["top_logprobs"][-1]) == [tokenizer.special]
    assert last["tokens"][-1] == ""
    assert answer["usage"]["completion_tokens"] == 64


def test_the_likeliest_tokens_hold_the_greedy_and_the_chosen_one(post):
    """Exactly equal numbers: that is how harnesses tell whether a token is the greedy one."""
    sampled = {"prompt": [5, 6, 7, 8] * 3, "max_tokens": 8, "temperature": 1.5, "seed": 3}
    answer = post(**sampled, echo=True, logprobs=2).json()["choices"][0]["logprobs"]
    greedy = 0
    for score, top in zip(answer["token_logprobs"][1:], answer["top_logprobs"][1:], strict=True):
        assert score in top.values()
        assert 2 <= len(top) <= 3
        greedy += score == max(top.values())
    assert 0 <= greedy < 19
    assert post(**sampled, echo=True, logprobs=0).json()["choices"][0]["logprobs"] == {
        **answer,
        "top_logprobs": None,
    }
