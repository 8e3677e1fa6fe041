"""The engine against a loop without cache or batch, and its promises about who shares a batch."""

from __future__ import annotations

import pytest
import torch
from engine_cases import GATES, assert_same, mixed_requests, random_prompts, reference

from mhc_model import Engine, EngineError, Request, SamplingParams


@pytest.fixture(scope="module")
def lone(model):
    """The mixed requests, and the completion of each without company."""
    requests = mixed_requests()
    return requests, [Engine(model, max_batch=1).generate([request])[0] for request in requests]


@pytest.mark.parametrize("plain", [False, True])
def test_greedy_equals_the_uncached_loop(tiny_model, plain):
    model = tiny_model(plain=plain, n_kv_heads=2)
    engine = Engine(model, max_batch=3)
    requests = [
        Request(prompt, None if plain else gates, SamplingParams(max_tokens=16, logprobs=True))
        for prompt, gates in zip(random_prompts(8), GATES, strict=True)
    ]
    for request, completion in zip(requests, engine.generate(requests), strict=True):
        tokens, logprobs, margins = reference(model, request.prompt, request.gates, 16)
        assert min(margins) > 1e-4, "the case must not be a tie"
        assert completion.tokens == tokens
        torch.testing.assert_close(
            torch.tensor(completion.logprobs), torch.tensor(logprobs), atol=1e-4, rtol=0
        )
        assert completion.finish_reason == "length"
        assert completion.text is None


def test_a_mixed_batch_equals_one_by_one(model, lone):
    requests, alone = lone
    for max_batch in (8, 3, 2):
        together = Engine(model, max_batch=max_batch).generate(requests)
        for a, b, request in zip(together, alone, requests, strict=True):
            assert_same(a, b)
            assert a.request_id == request.id
            assert len(a.tokens) == request.sampling.max_tokens
    backwards = Engine(model, max_batch=4).generate(requests[::-1])
    for a, b in zip(backwards[::-1], alone, strict=True):
        assert_same(a, b)


def test_requests_join_late(model, lone):
    requests, completions = lone
    alone = {completion.request_id: completion for completion in completions}
    engine = Engine(model, max_batch=5)
    waiting, done = list(requests), []
    for step in range(200):
        if waiting and step % 3 == 0:
            engine.add(waiting.pop())
        done += engine.step()
        assert engine.active <= 5
        if not waiting and not engine.has_work:
            break
    assert len(done) == len(requests)
    for completion in done:
        assert_same(completion, alone[completion.request_id])
    # Shorter ones that came later have left earlier.
    assert [c.request_id for c in done] != [r.id for r in requests[::-1]]
    assert engine.step() == []


def test_gates_steer_and_are_reported(model):
    prompt, sampling = random_prompts(1)[0], SamplingParams(max_tokens=8, logprobs=True)
    engine = Engine(model)
    results = engine.generate([Request(prompt, gates, sampling) for gates in (0, 1, None)])
    assert results[0].gates == (0.0,) * 6
    assert results[1].gates == (1.0,) * 6
    torch.testing.assert_close(torch.tensor(results[2].gates), model.learned_gates().detach())
    first = [result.logprobs[0] for result in results]
    assert len({round(value, 3) for value in first}) == 3


def test_generation_changes_no_parameter(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Engine(model).generate(mixed_requests())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_timings_are_in_order(model):
    for completion in Engine(model, max_batch=2).generate(mixed_requests()):
        timings = completion.timings
        assert 0 <= timings.queued_s <= timings.first_token_s <= timings.total_s


# Log-probabilities


def test_logprobs_only_where_asked_for(alphabet):
    (completion,) = alphabet.generate([Request([97], None, SamplingParams(max_tokens=2))])
    assert completion.logprobs is None
    assert completion.gates is None


# Sizes and options


def test_the_context_can_be_filled_to_the_last_token(model):
    request = Request([1] * 88, 0.5, SamplingParams(max_tokens=8))
    assert len(Engine(model).generate([request])[0].tokens) == 8
    with pytest.raises(EngineError, match="the context is 95"):
        Engine(model, max_seq_len=95).generate([request])


@pytest.mark.parametrize("arguments", [{"max_batch": 0}, {"max_seq_len": 97}, {"max_seq_len": 0}])
def test_refuses_bad_sizes(model, arguments):
    with pytest.raises(EngineError):
        Engine(model, **arguments)


def test_a_seed_is_reproducible_and_seeds_differ(model):
    def draw(seed: int, temperature: float = 1.5) -> tuple[int, ...]:
        sampling = SamplingParams(max_tokens=6, temperature=temperature, seed=seed)
        return Engine(model).generate([Request([7, 8], 0.5, sampling)])[0].tokens

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) == 4
    # As the temperature goes to zero, sampling becomes greedy.
    assert draw(3, 1e-5) == draw(4, 0.0)


def test_logprobs_are_kept_only_for_who_asks(model):
    quiet = Request([1, 2], 0.5, SamplingParams(max_tokens=4))
    some = Request([1, 2], 0.5, SamplingParams(max_tokens=4, logprobs=True))
    top = Request([1, 2], 0.5, SamplingParams(max_tokens=4, logprobs=True, top_logprobs=2))
    a, b, c = Engine(model).generate([quiet, some, top])
    assert (a.logprobs, a.top_logprobs, a.prompt_logprobs) == (None, None, None)
    assert len(b.logprobs) == 4
    assert b.top_logprobs is None
    assert [len(pairs) for pairs in c.top_logprobs] == [2] * 4
    assert [pairs[0][1] for pairs in c.top_logprobs] == pytest.approx(list(c.logprobs), abs=1e-6)


@pytest.mark.parametrize("options", [{"prefill_chunk": 0}, {"prefix_cache_bytes": -1}])
def test_refuses_bad_options(model, options):
    with pytest.raises(EngineError, match=next(iter(options))):
        Engine(model, **options)
