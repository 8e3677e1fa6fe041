"""The API answers with what the engine computes for the same prompt, gates and sampling."""

from __future__ import annotations

import asyncio

import pytest
import torch

from mhc_model import Engine, Request, SamplingParams, expand_gates
from mhc_model.checkpoint import checkpoint_hash

PROMPT = "Question: Tom has 7 apples"
GREEDY = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
SUBLAYERS = [0.0, 1.0, 0.25, 0.5, 0.75, 1.0]


@pytest.fixture
def alone(make_engine, tokenizer):
    """The completion of a lone run of the engine."""

    def run(prompt, gates=None, **sampling):
        tokens = tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt
        request = Request(tokens, gates=gates, sampling=SamplingParams(**sampling))
        return make_engine().generate([request])[0]

    return run


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


def test_response_has_openai_shape(post, checkpoint, tokenizer):
    answer = post(**GREEDY, user="someone").json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny"
    assert answer["checkpoint"] == checkpoint_hash(checkpoint)
    assert answer["choices"][0]["index"] == 0
    assert answer["choices"][0]["logprobs"] is None
    prompt_tokens = len(tokenizer.encode(PROMPT, bos=True))
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 12,
        "total_tokens": prompt_tokens + 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


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


def test_logprobs_of_the_chosen_tokens(post, alone):
    choice = post(**GREEDY, logprobs=0).json()["choices"][0]
    expected = alone(PROMPT, max_tokens=12, logprobs=True)
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == pytest.approx(list(expected.logprobs))
    assert "".join(logprobs["tokens"]) == choice["text"]
    for piece, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset : offset + len(piece)] == piece


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


def test_the_likeliest_tokens_hold_the_greedy_and_the_chosen_one(post, alone):
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


def test_samples_of_several_prompts_are_ordered_by_prompt(post):
    fields = {"max_tokens": 6, "temperature": 1.0, "seed": 9}
    both = post(prompt=[PROMPT, "naïve"], n=3, **fields).json()["choices"]
    assert [choice["index"] for choice in both] == list(range(6))
    for start, prompt in ((0, PROMPT), (3, "naïve")):
        alone = post(prompt=prompt, n=3, best_of=3, **fields).json()["choices"]
        assert [c["text"] for c in alone] == [c["text"] for c in both[start : start + 3]]


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
