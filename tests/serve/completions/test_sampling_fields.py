"""Fields of sampling over HTTP, in both APIs: what they do, and what answers hold for them."""

from __future__ import annotations

import json
import re

import pytest

BODY = {"prompt": "Question: Tom", "max_tokens": 12, "temperature": 0}
NUMBERS = {"structured_outputs": {"regex": "[0-9]{3}"}}


@pytest.fixture
def text(post):
    def of(**fields) -> str:
        response = post(**{**BODY, **fields})
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["text"]

    return of


def test_fields_reach_the_engine(text, alone, tokenizer):
    fields = [
        {"presence_penalty": 2.0, "frequency_penalty": 1.0},
        {"repetition_penalty": 5.0},
        {"logit_bias": {"40": 100, "41": 99.5}, "frequency_penalty": 2},
        {"allowed_token_ids": [40, 41, 42], "min_tokens": 12},
        {"temperature": 1.5, "seed": 4, "min_p": 0.3},
        {"temperature": 1.5, "seed": 4, "min_p": 0.05, "top_k": 5},
    ]
    seen = set()
    for given in fields:
        sampling = {"max_tokens": 12, **given}
        if "logit_bias" in given:
            sampling["logit_bias"] = {int(key): value for key, value in given["logit_bias"].items()}
        if "allowed_token_ids" in given:
            sampling["allowed_token_ids"] = tuple(given["allowed_token_ids"])
        answer = text(**given)
        assert answer == alone(BODY["prompt"], **sampling).text, given
        seen.add(answer)
    assert len(seen) >= 5


def test_a_seed_of_minus_one_is_any(text):
    drawn = {text(temperature=2, seed=-1) for _ in range(4)}
    assert len(drawn) > 1
    assert len({text(temperature=2, seed=-7) for _ in range(2)}) == 1


def test_forms_of_answers(text, chat):
    assert re.fullmatch("[0-9]{3}", text(**NUMBERS))
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}}
    schema |= {"required": ["a"], "additionalProperties": False}
    as_json = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for fields in (
        {"response_format": as_json},
        {"structured_outputs": {"json": schema, "disable_any_whitespace": True}},
        {"structured_outputs": {"json": json.dumps(schema)}},
    ):
        # The penalty is against white space without end.
        parsed = json.loads(text(**fields, max_tokens=60, frequency_penalty=2))
        assert set(parsed) == {"a"}
    assert text(structured_outputs={"choice": ["yes", "no"]}) in ("yes", "no")
    assert re.fullmatch("a[bc]+", text(structured_outputs={"grammar": 'root ::= "a" [bc]+'}))
    given = {"response_format": as_json, "max_tokens": 60, "frequency_penalty": 2}
    answer = chat(**given).json()["choices"][0]
    assert set(json.loads(answer["message"]["content"])) == {"a"}
    assert answer["finish_reason"] == "stop"
    anything = chat(response_format={"type": "json_object"}, max_tokens=30).json()["choices"][0]
    assert anything["message"]["content"].lstrip()[:1] in ("{", "")


def test_a_form_in_a_stream(post, events_of):
    events = events_of(post(**BODY, **NUMBERS, stream=True))
    pieces = [event["choices"][0] for event in events[:-1]]
    assert re.fullmatch("[0-9]{3}", "".join(piece["text"] for piece in pieces))
    assert pieces[-1]["finish_reason"] == "stop"


def test_the_best_of_several_is_that_of_the_highest_mean(post):
    body = {**BODY, "temperature": 1.5, "seed": 5, "logprobs": 0}

    def means(answer):
        each = [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]]
        return [sum(values) / len(values) for values in each]

    made = post(**body, n=6).json()
    best = post(**body, n=2, best_of=6).json()
    assert means(best) == pytest.approx(sorted(means(made), reverse=True)[:2])
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"] == made["usage"]  # what was made is counted
    without = post(**{**body, "logprobs": None}, best_of=6).json()["choices"]
    assert [choice["text"] for choice in without] == [best["choices"][0]["text"]]
    assert without[0]["logprobs"] is None


def test_log_probabilities_of_a_prompt(post, chat, tokenizer):
    echoed = post(**BODY, echo=True, logprobs=2).json()["choices"][0]["logprobs"]
    choice = post(**BODY, prompt_logprobs=2).json()["choices"][0]
    tokens = tokenizer.encode(BODY["prompt"], bos=True)
    found = choice["prompt_logprobs"]
    assert choice["logprobs"] is None
    assert found[0] is None
    assert len(found) == len(tokens)
    for place, (token, entry) in enumerate(zip(tokens[1:], found[1:], strict=True)):
        assert 2 <= len(entry) <= 3
        own = entry[str(token)]
        assert own["logprob"] == pytest.approx(echoed["token_logprobs"][place], abs=1e-4)
        better = sum(other["logprob"] >= own["logprob"] for other in entry.values())
        assert own["rank"] == better or (own["rank"] > 2 and better == len(entry))
        assert own["decoded_token"] == tokenizer.decode([token])
    talk = chat(prompt_logprobs=0, max_tokens=2).json()
    assert len(talk["prompt_logprobs"]) == talk["usage"]["prompt_tokens"]
    assert {len(entry) for entry in talk["prompt_logprobs"][1:]} == {1}
    both = post(**BODY, prompt_logprobs=3, logprobs=1).json()["choices"][0]
    assert max(map(len, both["logprobs"]["top_logprobs"])) <= 2


def test_token_ids_of_prompt_and_answer(post, chat, events_of, tokenizer):
    choice = post(**BODY, return_token_ids=True).json()["choices"][0]
    assert choice["prompt_token_ids"] == tokenizer.encode(BODY["prompt"], bos=True)
    assert tokenizer.decode(choice["token_ids"]) == choice["text"]
    pieces = [
        event["choices"][0]
        for event in events_of(post(**BODY, return_token_ids=True, stream=True))[:-1]
    ]
    assert pieces[0]["prompt_token_ids"] == choice["prompt_token_ids"]
    assert all("prompt_token_ids" not in piece for piece in pieces[1:])
    assert [i for piece in pieces for i in piece.get("token_ids", [])] == choice["token_ids"]
    talk = chat(return_token_ids=True, max_tokens=5).json()
    assert len(talk["prompt_token_ids"]) == talk["usage"]["prompt_tokens"]
    assert len(talk["choices"][0]["token_ids"]) == talk["usage"]["completion_tokens"]
    chunks = events_of(chat(return_token_ids=True, max_tokens=5, stream=True))[:-1]
    assert chunks[0]["prompt_token_ids"] == talk["prompt_token_ids"]
    assert [i for c in chunks for i in c["choices"][0].get("token_ids", [])] == (
        talk["choices"][0]["token_ids"]
    )


def test_prompts_are_cut_at_their_beginning_behind_the_start(post, chat, tokenizer, error_of):
    def ids(**fields):
        body = {**BODY, "max_tokens": 6, "return_token_ids": True, **fields}
        return post(**body).json()["choices"][0]["prompt_token_ids"]

    text = "Question: Tom has 7 apples and buys 5 more. " * 400
    whole = tokenizer.encode(text)
    assert ids(prompt=text, truncate_prompt_tokens=10) == [tokenizer.bos_id, *whole[-9:]]
    assert ids(prompt=text, truncate_prompt_tokens=-1) == [tokenizer.bos_id, *whole[-89:]]
    assert ids(prompt=text, truncate_prompt_tokens=10, truncation_side="right") == [
        tokenizer.bos_id,
        *whole[:9],
    ]
    assert ids(prompt=whole, truncate_prompt_tokens=10) == whole[-10:]
    assert ids(prompt=[1, 2], truncate_prompt_tokens=10) == [1, 2]
    assert ids(prompt="a", add_special_tokens=False) == tokenizer.encode("a")
    talk = [{"role": "user", "content": text}]
    assert chat(messages=talk).status_code == 400
    answer = chat(messages=talk, truncate_prompt_tokens=-1, max_tokens=6).json()
    assert answer["usage"]["prompt_tokens"] == 90
    error = error_of(post(**BODY, truncate_prompt_tokens=90), 400)
    assert "room for 84" in error["message"]
    assert (
        "empty"
        in error_of(post(**BODY, truncate_prompt_tokens=0, add_special_tokens=False), 400)[
            "message"
        ]
    )


def test_the_space_before_an_answer_is_the_templates(chat, post, events_of, tokenizer):
    """`Answer:` ends the prompt, and the model goes on with ` 12`: the answer is `12`."""
    space = tokenizer.encode(" 12")[0]
    assert tokenizer.decode([space]).startswith(" ")
    fields = {"allowed_token_ids": [space], "max_tokens": 3}
    piece = tokenizer.decode([space])
    assert chat(**fields).json()["choices"][0]["message"]["content"] == (3 * piece)[1:]
    chunks = events_of(chat(**fields, stream=True))[:-1]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == (3 * piece)[1:]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "It is"}]
    more = chat(messages=turns, continue_final_message=True, **fields).json()
    assert more["choices"][0]["message"]["content"] == 3 * piece
    assert post(**{**BODY, **fields}).json()["choices"][0]["text"] == 3 * piece
