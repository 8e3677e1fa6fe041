"""Answers of a given form are of that form, whatever the model would say, each row its own."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import torch

from mhc_model import Engine, EngineError, Request, SamplingParams
from mhc_model.engine import Structure
from mhc_model.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "東京"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMS = [
    Structure("json", json.dumps(SCHEMA), compact=True),
    Structure("regex", r"[0-9]{3}-[a-z]{2,5}"),
    Structure("choice", json.dumps(["yes", "no", "東京 <|bos|>"])),
    Structure("grammar", 'root ::= "f(" [0-9] ("," [0-9])? ")"'),
    Structure("grammar", 'start: "x" /[01]{4}/'),
    None,
]


def fits(structure: Structure | None, text: str) -> bool:
    if structure is None:
        return True
    if structure.kind == "json":
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    if structure.kind == "choice":
        return text in json.loads(structure.source)
    if structure.kind == "regex":
        return re.fullmatch(structure.source, text) is not None
    return re.fullmatch(r"f\([0-9](,[0-9])?\)|x[01]{4}", text) is not None


@pytest.fixture(scope="module")
def speaks(tiny_model) -> tuple[Engine, Tokenizer]:
    tokenizer = Tokenizer.train(["Question: Tom has 7 apples.\nAnswer: 12 東京"] * 8, 300)
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=400)
    return Engine(model, tokenizer, max_batch=4), tokenizer


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_every_row_of_a_batch_has_its_own_form(speaks, temperature):
    engine, tokenizer = speaks
    requests = [
        Request(
            tokenizer.encode("Question: Tom", bos=True),
            gate,
            SamplingParams(
                max_tokens=200, temperature=temperature, seed=7, logprobs=True, structure=form
            ),
            n=2,
        )
        for gate in (0.0, 1.0)
        for form in FORMS
    ]
    done = engine.generate(requests)
    for place, completion in enumerate(done):
        form = FORMS[place // 2 % len(FORMS)]
        assert fits(form, completion.text), (form, completion.text)
        if form is not None:
            assert completion.finish_reason == "stop"
            assert completion.text == tokenizer.decode(completion.tokens)
            assert len(completion.logprobs) == len(completion.tokens)
    lone = Engine(engine.model, tokenizer, max_batch=1)
    for place, request in enumerate(requests[:6]):
        assert [c.tokens for c in lone.generate([request])] == [
            c.tokens for c in done[2 * place : 2 * place + 2]
        ]


def test_it_ends_where_the_tokens_do_and_with_other_limits(speaks):
    engine, tokenizer = speaks
    prompt = tokenizer.encode("Question:", bos=True)

    def run(structure, **sampling):
        params = SamplingParams(**{"max_tokens": 40, "structure": structure, **sampling})
        return engine.generate([Request(prompt, None, params)])[0]

    ten = Structure("regex", "[0-9]{10,30}")
    assert run(ten, max_tokens=4).finish_reason == "length"
    for temperature in (0.0, 1.0):  # too complex after some tokens
        endless = run(
            Structure("regex", "((a{1,100}){1,100}){1,100}"),
            max_tokens=60,
            min_tokens=50,
            temperature=temperature,
        )
        assert (endless.finish_reason, set(endless.text)) == ("length", {"a"})
        assert len(endless.tokens) < 60
    assert re.fullmatch("[0-9]+", run(ten, max_tokens=4).text)
    assert 10 <= len(run(ten, ignore_eos=True).text) <= 30
    assert len(run(Structure("regex", "[ab]*"), min_tokens=9).tokens) >= 9
    biased = run(Structure("regex", "[0-9]+"), logit_bias={tokenizer.encode("7")[0]: 100.0})
    assert set(biased.text) == {"7"}
    penalised = run(Structure("choice", '["aaaaaa"]'), frequency_penalty=2.0)
    assert penalised.text == "aaaaaa"


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        (Structure("regex", "("), "unclosed group"),
        (Structure("regex", "a(?=b)"), "look-around"),
        (Structure("json", '{"type": "nonsense"}'), "nonsense"),
        (Structure("json", "{"), "json"),
        (Structure("json", "[]"), "object"),
        (Structure("choice", "[]"), "at least one text"),
        (Structure("choice", "[1]"), "at least one text"),
        (Structure("grammar", "start: missing"), "missing"),
        (Structure("regex", "a" * 200_001), "200000"),
        (Structure("json", '{"$ref": "#"}'), "no text has it"),
        (Structure("grammar", "start: a\na: b\nb: a"), "no text has it"),
        (Structure("regex", "(" * 5000 + "a" + ")" * 5000), "regex"),
    ],
)
def test_forms_that_cannot_be_followed_are_refused_at_once(speaks, structure, words):
    engine, _ = speaks
    with pytest.raises(EngineError, match=words) as caught:
        engine.add(Request([1], None, SamplingParams(structure=structure)))
    assert structure.kind in str(caught.value)
    assert not engine.has_work


def test_a_form_needs_a_tokenizer_and_goes_with_no_list_of_tokens(model):
    with pytest.raises(EngineError, match="tokenizer"):
        Engine(model).add(Request([1], None, SamplingParams(max_tokens=9, structure=FORMS[1])))
    with pytest.raises(EngineError, match="give one"):
        SamplingParams(structure=FORMS[1], allowed_token_ids=(1,))


def test_prompt_ranks_count_tokens_that_are_at_least_as_likely(model):
    prompt = [3, 5, 9, 11, 2]
    params = SamplingParams(max_tokens=1, prompt_logprobs_from=0, prompt_ranks=True, top_logprobs=2)
    found = Engine(model).generate([Request(prompt, None, params)])[0].prompt_logprobs
    with torch.inference_mode():
        logits = model(torch.tensor([prompt]))[0, :-1]
    ranks = [
        sorted(row.tolist(), reverse=True).index(row[t].item()) + 1
        for row, t in zip(logits, prompt[1:], strict=True)
    ]
    assert found.ranks == (None, *ranks)
