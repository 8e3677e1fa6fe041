"""Penalties, biases and what is forbidden: each row its own, as other implementations have them."""

from __future__ import annotations

import pytest
import torch
from engine_cases import GATES, alone, assert_same, random_prompts
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from mhc_model import Engine, EngineError, Request, SamplingParams, expand_gates
from mhc_model.engine.sampling import sample

EVEN = tuple(range(0, 61, 2))
SHAPES = [
    {"presence_penalty": 2.0},
    {"frequency_penalty": 1.5},
    {"frequency_penalty": -2.0},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.6, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"logit_bias": {3: 100.0, 4: -100.0}},
    {"logit_bias": {token: -100.0 for token in EVEN}},
    {"allowed_token_ids": EVEN},
    {"allowed_token_ids": (5, 6, 7), "logit_bias": {6: 3.0}, "frequency_penalty": 2.0},
    {"min_tokens": 9, "stop_token_ids": EVEN},
    {"min_tokens": 9, "stop_token_ids": EVEN, "repetition_penalty": 1.4, "top_logprobs": 2},
    {},
]


def shaped(logits: torch.Tensor, prompt: list[int], drawn: list[int], params: SamplingParams):
    """(v,) logits of one row, by other implementations or in a loop over tokens."""
    scores = logits[None].clone()
    if params.allowed_token_ids is not None:
        for token in range(scores.shape[1]):
            if token not in params.allowed_token_ids:
                scores[0, token] = -torch.inf
    if params.logit_bias:
        biases = {(token,): bias for token, bias in params.logit_bias.items()}
        scores = SequenceBiasLogitsProcessor(biases)(torch.tensor([prompt]), scores)
    ids = torch.tensor([prompt + drawn])
    if params.min_tokens:
        ends = list(params.stop_token_ids)
        least = MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, ends)
        scores = least(ids, scores)
    if params.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    for token in drawn:  # OpenAI's formula: mu - c * frequency - (c > 0) * presence
        scores[0, token] -= params.frequency_penalty
    for token in set(drawn):
        scores[0, token] -= params.presence_penalty
    return scores[0]


def oracle(model, request: Request) -> list[int]:
    """Greedy tokens by whole forward passes."""
    rows = None
    if request.gates is not None:
        rows = expand_gates(request.gates, model.config.n_layers)[None]
    prompt, drawn = list(request.prompt), []
    while len(drawn) < request.sampling.max_tokens:
        tokens = torch.tensor([prompt + drawn])
        with torch.inference_mode():
            logits = model(tokens, rows)[0, -1]
        drawn.append(int(shaped(logits, prompt, drawn, request.sampling).argmax()))
        if drawn[-1] in request.sampling.stop_token_ids:
            return drawn[:-1]
    return drawn


@pytest.fixture(scope="module")
def asked() -> list[Request]:
    return [
        Request(prompt, gates, SamplingParams(max_tokens=14, logprobs=True, **shape))
        for prompt, gates, shape in zip(random_prompts(12), GATES * 2, SHAPES, strict=False)
    ]


def test_each_row_of_a_batch_is_shaped_as_alone_and_as_elsewhere(model, asked):
    """With fewer rows than requests: slots are used again and rows move between them."""
    changed = 0
    for max_batch in (12, 5):
        for request, done in zip(
            asked, Engine(model, max_batch=max_batch).generate(asked), strict=True
        ):
            assert list(done.tokens) == oracle(model, request)
            assert_same(done, alone(model, request)[0])
            plain = Request(request.prompt, request.gates, SamplingParams(max_tokens=14))
            changed += alone(model, plain)[0].tokens != done.tokens
    assert changed > 12


def test_log_probabilities_stay_the_models_own(model):
    prompt = random_prompts(1, 9, 9)[0]
    for shape in SHAPES:
        params = SamplingParams(max_tokens=12, logprobs=True, ignore_eos=True, **shape)
        done = alone(model, Request(prompt, None, params))[0]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + list(done.tokens)]))[0]
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        found = expected.gather(-1, torch.tensor(done.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(done.logprobs), found, atol=1e-4, rtol=0)


def test_sampled_rows_are_shaped_too(model):
    params = {"max_tokens": 30, "temperature": 2.0, "seed": 3}
    engine = Engine(model, max_batch=4)
    requests = [
        Request([1, 2], None, SamplingParams(**params, allowed_token_ids=EVEN)),
        Request([1, 2], None, SamplingParams(**params, logit_bias={7: 100.0})),
        Request([1, 2], None, SamplingParams(**params)),
        Request([1, 2], None, SamplingParams(**params, min_tokens=30, stop_token_ids=EVEN)),
    ]
    even, seven, free, odd = engine.generate(requests)
    assert set(even.tokens) < set(EVEN)
    assert set(seven.tokens) == {7}
    assert {token % 2 for token in free.tokens} == {0, 1}
    assert {token % 2 for token in odd.tokens} == {1}


def test_min_p_keeps_what_is_near_the_likeliest():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])).expand(3000, -1)
    rows = len(logits)
    least = torch.tensor([0.0, 0.2, 0.5]).repeat(rows // 3)
    drawn = sample(
        logits,
        torch.ones(rows),
        torch.zeros(rows, dtype=torch.int64),
        torch.ones(rows),
        torch.arange(rows),
        torch.zeros(rows, dtype=torch.int64),
        min_p=least,
    )
    assert set(drawn[0::3].tolist()) == {0, 1, 2, 3, 4}
    assert set(drawn[1::3].tolist()) == {0, 1, 2}
    assert set(drawn[2::3].tolist()) == {0, 1}
    share = float((drawn[2::3] == 0).float().mean())
    assert share == pytest.approx(0.5 / 0.8, abs=0.06)


def test_stop_strings_wait_for_the_least_number_of_tokens(alphabet):
    def text(**sampling):
        params = SamplingParams(max_tokens=8, stop=("d", "h"), **sampling)
        return alphabet.generate([Request([ord("a")], None, params)])[0]

    assert text().text == "bc"
    assert text(min_tokens=3).text == "bcdefg"
    assert text(min_tokens=7).text == "bcdefghi"
    assert text(min_tokens=7).finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"min_p": 1.1}, "min_p is 1.1; it must be 0 to 1"),
        ({"min_p": float("nan")}, "min_p"),
        ({"presence_penalty": 2.5}, "-2 to 2"),
        ({"frequency_penalty": "1"}, "a number"),
        ({"repetition_penalty": 0.0}, "0.01 to 100"),
        ({"min_tokens": 6}, "0 to max_tokens"),
        ({"logit_bias": {1: 101.0}}, "-100 to 100"),
        ({"logit_bias": {61: 1.0}}, "vocabulary of 0 to 60"),
        ({"logit_bias": {"1": 1.0}}, "vocabulary of 0 to 60"),
        ({"allowed_token_ids": ()}, "no token could be drawn"),
        ({"allowed_token_ids": (1, -1)}, "vocabulary of 0 to 60"),
        ({"allowed_token_ids": (1,), "min_tokens": 1, "stop_token_ids": (1,)}, "no token could"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(model, fields, words):
    with pytest.raises(EngineError, match=words) as caught:
        Engine(model).add(Request([1], None, SamplingParams(**{"max_tokens": 5, **fields})))
    assert next(iter(fields)) in str(caught.value)
