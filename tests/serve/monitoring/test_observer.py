"""What metrics and the log hear: of requests, what they took, and of the load."""

from __future__ import annotations

import pytest
import torch

from mhc_model import expand_gates
from mhc_model.gates import gates_hash

GREEDY = {"prompt": "Question: Tom", "max_tokens": 8, "temperature": 0}


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_is_recorded(post, service, notes, tokenizer, stream):
    response = post(service, **GREEDY, n=2, gates=0.5, stream=stream, ignore_eos=True)
    (record,) = notes.records
    assert record.id == response.headers["x-request-id"]
    assert record.route == "/v1/completions"
    assert (record.outcome, record.status) == ("ok", 200)
    assert record.samples == 2
    assert record.prompt_tokens == len(tokenizer.encode("Question: Tom", bos=True))
    assert record.completion_tokens == 16
    assert record.gates_hash == gates_hash(expand_gates(0.5, 3))
    assert record.gates_source == "request"
    assert 0 < record.ttft_s < record.total_s
    assert record.tpot_s == pytest.approx((record.total_s - record.ttft_s) / 7)
    assert notes.accepted_samples == [(record.id, record.route, 2)]
    assert notes.first_tokens == [(record.id, record.route, record.ttft_s)]


def test_cached_tokens_are_counted(post, service, notes):
    prompt = [1 + i % 7 for i in range(80)]
    answers = [post(service, prompt=prompt, max_tokens=1).json() for _ in range(2)]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached[0] == 0
    assert 0 < cached[1] < 80
    assert [record.cached_tokens for record in notes.records] == cached
    post(service, prompt=prompt, max_tokens=1, stream=True)
    assert notes.records[-1].cached_tokens == cached[1]


def test_the_load_is_told_until_it_is_zero(post, service, notes, wait_until):
    post(service, prompt=[[1, 2]] * 6, max_tokens=40, ignore_eos=True)
    wait_until(lambda: notes.loads[-1][0].finished == 6)
    assert any(stats.decoding > 0 for stats, _ in notes.loads) or len(notes.loads) == 1
    last = notes.loads[-1][0]
    assert (last.decoding, last.prefilling, last.waiting, last.kv_tokens) == (0, 0, 0, 0)
    assert last.generated_tokens == 240


def test_hashes_are_of_one_vector_only(post, make_service, make_engine, plain_checkpoint, notes):
    service = make_service(make_engine(plain_checkpoint), observer=notes)
    post(service, **GREEDY)
    assert (notes.records[0].gates_hash, notes.records[0].gates_source) == (None, None)
    assert gates_hash(torch.zeros(6)) != gates_hash(torch.ones(6))
