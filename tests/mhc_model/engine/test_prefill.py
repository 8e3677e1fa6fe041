"""Reading prompts: which chunks go into a pass, that chunks change nothing, and their scores."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from engine_cases import (
    GATES,
    alone,
    assert_same,
    make_row,
    random_prompts,
    requests,
    run_to_end,
    uncached_scores,
)
from hypothesis import given
from hypothesis import strategies as st

from mhc_model import Engine, Request, SamplingParams
from mhc_model.engine import prefill
from mhc_model.engine.prefill import MOST_PADDING, choose_chunks, score_prompts
from mhc_model.engine.prefix_cache import BLOCK

# Which chunks go into a pass


def reading(*lengths: int, filled: int = 0):
    """Rows with so many tokens left to read."""
    rows = [make_row([1] * (filled + length)) for length in lengths]
    for row in rows:
        row.filled = filled
    return rows


@pytest.mark.parametrize(
    ("lengths", "budget", "chosen"),
    [
        ([7], 10, [(0, 7)]),
        ([70], 10, [(0, 10)]),  # a part of it
        ([5, 5, 5], 15, [(0, 5), (1, 5), (2, 5)]),
        ([5, 5, 5], 14, [(0, 5), (1, 5)]),  # a third would exceed the budget
        ([5, 1, 5], 100, [(0, 5), (2, 5)]),  # the short one would be mostly padding
        ([9, 6, 8], 18, [(0, 9), (2, 8)]),  # the nearest length first
        ([5, 9, 4], 100, [(0, 5), (2, 4)]),
        ([5, 9, 6, 8, 7], 100, [(0, 5), (2, 6), (4, 7), (3, 8), (1, 9)]),
        ([4, 3], 8, [(0, 4), (1, 3)]),  # the padding counts: 8 positions for 7 tokens
        ([4, 3], 7, [(0, 4)]),
        ([40, 50, 3], 20, [(0, 20)]),  # the pass is full with the first
    ],
)
def test_a_pass_is_the_first_row_and_its_likes(lengths, budget, chosen):
    rows = reading(*lengths, filled=3)
    taken, counts = choose_chunks(rows, budget)
    assert [(rows.index(row), count) for row, count in zip(taken, counts, strict=True)] == chosen


@given(st.lists(st.integers(1, 80), min_size=1, max_size=12), st.integers(1, 200))
def test_a_pass_keeps_to_its_budget_and_pads_little(lengths, budget):
    rows = reading(*lengths)
    taken, counts = choose_chunks(rows, budget)
    assert taken[0] is rows[0]
    assert len({id(row) for row in taken}) == len(taken)
    for row, count in zip(taken, counts, strict=True):
        assert count == min(len(row.prompt), budget)
    size = len(taken) * max(counts)
    assert size <= budget
    assert size - sum(counts) <= MOST_PADDING * size + 1e-9


# Scores of what a pass reads


@torch.no_grad()
@pytest.mark.parametrize("positions", [2, 1024])
def test_a_pass_scores_what_it_predicts(model, monkeypatch, positions):
    """Chunks of two prompts side by side, with the logits of few and of many positions at once."""
    monkeypatch.setattr(prefill, "LOGIT_POSITIONS", positions)
    first, second, third = random_prompts(3, 9, 9)
    rows = [
        make_row(first, max_tokens=0, prompt_logprobs_from=0, top_logprobs=2),
        make_row(second, max_tokens=0, prompt_logprobs_from=6, top_logprobs=1),
        make_row(third, max_tokens=4),
    ]
    whole = model.hidden(torch.tensor([first, second, third]))
    for counts in ([5, 4, 5], [4, 5, 4]):
        parts = [whole[i, row.filled :][: max(counts)] for i, row in enumerate(rows)]
        hidden = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        score_prompts(model, hidden, rows, counts)
        for row, count in zip(rows, counts, strict=True):
            row.filled += count
    scores = model.logits(whole).log_softmax(dim=-1)
    for number, (row, start, most) in enumerate(zip(rows[:2], (0, 6), (2, 1), strict=True)):
        expected = [float(scores[number, i - 1, row.prompt[i]]) for i in range(max(1, start), 9)]
        values, likeliest = row.prompt_logprobs, row.prompt_top
        if start == 0:
            assert (values[0], likeliest[0]) == (None, ())
            values, likeliest = values[1:], likeliest[1:]
        assert values == pytest.approx(expected, abs=1e-5)
        for position, pairs in enumerate(likeliest, start=max(1, start)):
            best = scores[number, position - 1].topk(most)
            assert [pair[0] for pair in pairs] == best.indices.tolist()
            assert [pair[1] for pair in pairs] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert (rows[2].prompt_logprobs, rows[2].prompt_top) == ([], [])


# Through the engine: prompts in chunks


@pytest.fixture(scope="module", params=[0.0, 1.3])
def drawn(request, model):
    """Requests, and what each gives alone."""
    wanted = requests(10, temperature=request.param, top_k=20, seed=3)
    return wanted, [alone(model, each)[0] for each in wanted]


@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
def test_chunks_change_nothing(model, drawn, chunk):
    wanted, expected = drawn
    engine = Engine(model, max_batch=5, prefill_chunk=chunk)
    engine.add(Request([1], 0.5, SamplingParams(max_tokens=95), id="decodes all the time"))
    engine.step()
    for request in wanted:
        engine.add(request)
    done = run_to_end(engine)
    for request, completion in zip(wanted, expected, strict=True):
        assert_same(done[request.id], completion)


def test_a_long_prompt_holds_nobody_up(model):
    """Rows decode in every step in which another prompt is read, at most a chunk at a time."""
    engine = Engine(model, max_batch=4, prefill_chunk=8)
    engine.add(Request([1], 0.5, SamplingParams(max_tokens=40), id="short", stream=True))
    engine.step()
    engine.take_deltas()
    engine.add(Request(random_prompts(1, 60, 60)[0], 0.5, SamplingParams(max_tokens=3)))
    read = []
    while engine.stats().prefilling or not read:
        engine.step()
        read.append(engine.stats().kv_tokens)
        assert len(engine.take_deltas()) == 1
    assert len(read) == math.ceil(60 / 8)
    assert max(b - a for a, b in itertools.pairwise(read)) <= 8 + 1


def test_prompts_are_read_together_while_others_wait(model):
    """With a line behind them, newcomers share a pass; without one they are read at once."""
    wanted = requests(24, least=4, most=8, temperature=1.0, seed=4)
    lengths = [3 + i % 9 for i in range(24)]
    wanted = [
        dataclasses.replace(r, sampling=dataclasses.replace(r.sampling, max_tokens=length))
        for r, length in zip(wanted, lengths, strict=True)
    ]
    passes = []
    engine = Engine(model, max_batch=6)
    read = engine._read
    engine._read = lambda rows, counts: (passes.append(len(rows)), read(rows, counts))
    for request, completion in zip(wanted, engine.generate(wanted), strict=True):
        assert_same(completion, alone(model, request)[0])
    assert sum(passes) == 24
    assert len(passes) < 14
    engine.add(Request([1], 0.5, SamplingParams(max_tokens=20), id="decodes"))
    engine.step()
    engine.add(Request([2], 0.5, SamplingParams(max_tokens=1), id="newcomer"))
    assert [each.request_id for each in engine.step()] == ["newcomer"]


# Through the engine: log-probabilities of prompts, and the likeliest tokens


@pytest.mark.parametrize("first", [0, 1, 17, 40])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompt_logprobs(model, first, max_tokens):
    prompts = random_prompts(6, 41, 60)
    sampling = SamplingParams(
        max_tokens=max_tokens, prompt_logprobs_from=first, top_logprobs=3, logprobs=True
    )
    wanted = [Request(p, g, sampling) for p, g in zip(prompts, GATES, strict=False)]
    engine = Engine(model, max_batch=4, prefill_chunk=10)
    engine.add(Request([1], 0.5, SamplingParams(max_tokens=95)))
    engine.step()
    for request in wanted:
        engine.add(request)
    done = run_to_end(engine)
    for request in wanted:
        completion = done[request.id]
        assert completion.finish_reason == "length"
        assert len(completion.tokens) == max_tokens
        sequence = [*request.prompt, *completion.tokens]
        scores = uncached_scores(model, sequence, request.gates)
        given = [*completion.prompt_logprobs.logprobs, *completion.logprobs]
        top = [*completion.prompt_logprobs.top, *completion.top_logprobs]
        assert len(given) == len(top) == len(sequence) - first
        for position, (value, pairs) in enumerate(zip(given, top, strict=True), start=first):
            if position == 0:
                assert value is None
                assert pairs == ()
                continue
            row = scores[position - 1]
            assert value == pytest.approx(float(row[sequence[position]]), abs=1e-4)
            best = row.topk(3)
            assert [pair[1] for pair in pairs] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert [pair[0] for pair in pairs] == best.indices.tolist()


def test_scores_of_a_continuation_reuse_the_beginning(model):
    """What precedes `prompt_logprobs_from` comes from the prefix cache, what follows never."""
    prompt = random_prompts(1, 60, 60)[0]
    engine = Engine(model)
    for first in (50, 33, 17, 16, 1):
        sampling = SamplingParams(max_tokens=0, prompt_logprobs_from=first)
        (completion,) = engine.generate([Request(prompt, 0.3, sampling)])
        expected = 0 if first == 50 else (first - 1) // BLOCK * BLOCK
        assert completion.cached_tokens == expected
        scores = uncached_scores(model, prompt, 0.3)[range(59), prompt[1:]]
        given = torch.tensor(completion.prompt_logprobs.logprobs)
        torch.testing.assert_close(given, scores[first - 1 :], atol=1e-4, rtol=0)
