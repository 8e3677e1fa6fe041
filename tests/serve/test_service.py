"""The API answers with what the engine computes for the same prompt, gates and sampling."""

from __future__ import annotations

import asyncio

import pytest

from mhc_model import expand_gates
from mhc_model.checkpoint import checkpoint_hash

PROMPT = "Question: Tom has 7 apples"
GREEDY = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
SUBLAYERS = [0.0, 1.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("gates", [0, 1, 0.5, [0.5], [0.0, 1.0, 0.25], SUBLAYERS])
def test_gates_of_the_request_are_used(post, alone, gates):
    answer = post(**GREEDY, gates=gates).json()
    expected = alone(PROMPT, gates, max_tokens=12)
    assert answer["choices"][0]["text"] == expected.text
    assert answer["choices"][0]["finish_reason"] == expected.finish_reason
    assert answer["gates"] == expand_gates(gates, 3).tolist()
    assert answer["gates_source"] == "request"


def test_gates_change_the_answer(post):
    texts = {post(**GREEDY, gates=gates).json()["choices"][0]["text"] for gates in (0, 0.5, 1)}
    assert len(texts) == 3


@pytest.mark.parametrize("fields", [{}, {"gates": None}, {"gates": "learned"}])
def test_learned_gates_are_the_default(post, alone, make_engine, fields):
    answer = post(**GREEDY, **fields).json()
    assert answer["choices"][0]["text"] == alone(PROMPT, max_tokens=12).text
    assert answer["gates"] == make_engine().model.learned_gates().tolist()
    assert answer["gates_source"] == "learned"


def test_every_form_of_a_prompt(post, tokenizer):
    texts = [PROMPT, "naïve café"]
    tokens = [tokenizer.encode(text, bos=True) for text in texts]
    one, other = (post(**{**GREEDY, "prompt": text}).json()["choices"][0] for text in texts)
    assert one["text"] != other["text"]
    several = [one, {**other, "index": 1}]
    assert post(**{**GREEDY, "prompt": tokens[0]}).json()["choices"] == [one]
    assert post(**{**GREEDY, "prompt": texts}).json()["choices"] == several
    assert post(**{**GREEDY, "prompt": tokens}).json()["choices"] == several


def test_sampling_parameters_reach_the_engine(post, alone):
    sampling = {"temperature": 1.5, "top_p": 0.8, "top_k": 20, "seed": 7, "max_tokens": 12}
    answers = [post(prompt=PROMPT, **sampling).json()["choices"][0]["text"] for _ in range(2)]
    assert answers == [alone(PROMPT, **sampling).text] * 2
    assert answers[0] != post(**{**GREEDY, "temperature": 0}).json()["choices"][0]["text"]


def test_without_a_seed_samples_differ_and_max_tokens_is_16(post):
    answers = [post(prompt=PROMPT).json() for _ in range(2)]
    assert answers[0]["choices"][0]["text"] != answers[1]["choices"][0]["text"]
    assert all(answer["usage"]["completion_tokens"] <= 16 for answer in answers)


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_strings_end_the_text(post, as_list):
    whole = post(**GREEDY).json()["choices"][0]["text"]
    stop = next(letter for letter in reversed(whole) if letter.isascii() and letter.isalpha())
    answer = post(**GREEDY, stop=["\x00 never", stop] if as_list else stop).json()["choices"][0]
    assert answer["text"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_model_may_be_named_in_three_ways(post, checkpoint):
    for name in ("tiny", str(checkpoint), checkpoint_hash(checkpoint)):
        assert post(**GREEDY, model=name).json()["model"] == "tiny"


def test_plain_model_has_no_gates(post, make_service, make_engine, plain_checkpoint):
    service = make_service(make_engine(plain_checkpoint))
    answer = post(service, **GREEDY).json()
    assert answer["gates"] is None
    assert answer["gates_source"] is None
    assert answer["choices"][0]["gates"] is None
    for gates in (0.5, "learned", "policy"):
        response = post(service, **GREEDY, gates=gates)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "gates"
        assert "plain" in response.json()["error"]["message"]


def test_models_and_health(call, checkpoint, make_engine):
    card = call("GET", "/v1/models").json()
    assert card["object"] == "list"
    assert card["data"][0]["id"] == "tiny"
    assert card["data"][0]["checkpoint"] == checkpoint_hash(checkpoint)
    assert card["data"][0]["n_gates"] == 6
    assert card["data"][0]["learned_gates"] == make_engine().model.learned_gates().tolist()
    assert card["data"][0]["policy"] is False
    health = call("GET", "/health").json()
    assert health["status"] == "ok"
    assert (health["active"], health["waiting"]) == (0, 0)


def test_concurrent_requests_equal_lone_runs(make_service, client_of, alone):
    """More requests than rows, each with its own gates: all get what they would get alone."""
    rows = [[i / 11, 1 - i / 11, 0.5] for i in range(12)]
    prompts = [PROMPT[: 8 + i] for i in range(12)]

    async def run() -> list[dict]:
        async with client_of(make_service()) as client:
            bodies = [
                {**GREEDY, "prompt": prompt, "gates": row}
                for prompt, row in zip(prompts, rows, strict=True)
            ]
            calls = [client.post("/v1/completions", json=body) for body in bodies]
            return [response.json() for response in await asyncio.gather(*calls)]

    answers = asyncio.run(run())
    for answer, prompt, row in zip(answers, prompts, rows, strict=True):
        assert answer["choices"][0]["text"] == alone(prompt, row, max_tokens=12).text
        assert answer["gates"] == expand_gates(row, 3).tolist()


def test_neutral_values_of_fields_that_are_not_there(post):
    neutral = {"suffix": "", "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0}
    plain = post(**GREEDY).json()["choices"]
    assert post(**GREEDY, **neutral, best_of=1).json()["choices"] == plain
    assert post(**GREEDY, **dict.fromkeys(neutral)).json()["choices"] == plain


def test_stop_token_ids_and_the_end_of_a_document(post, alone):
    tokens = alone(PROMPT, max_tokens=12).tokens
    answer = post(**GREEDY, stop_token_ids=[tokens[3]], logprobs=0).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert len(answer["logprobs"]["tokens"]) == tokens.index(tokens[3])
