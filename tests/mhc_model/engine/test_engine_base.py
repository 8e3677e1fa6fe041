"""What every engine promises about requests: refusals, ids, samples, cancelling, the order."""

from __future__ import annotations

import math

import pytest
from engine_cases import alone, assert_same, random_prompts, run_to_end

from mhc_model import Decoder, Engine, EngineError, GateError, Request, SamplingParams
from mhc_model.engine import EngineBase, EngineStats, Row
from mhc_model.engine.prefix_cache import BLOCK


class LastFirst(EngineBase):
    """Ends the sample that came last, a step each, with one token."""

    max_seq_len = 8
    active = 0

    def __init__(self, model: Decoder) -> None:
        super().__init__(model, None, 1, None)
        self.rows: list[Row] = []

    @property
    def waiting(self):
        return len(self.rows)

    def stats(self) -> EngineStats:
        return self._stats

    def step(self):
        row = self.rows[-1]
        if row.request.id in self._cancelled:
            return [self._complete(row, "cancelled")]
        row.append(row.prompt[0] + row.index, 0.0)
        self._stream(row, final=True)
        return [self._complete(row, "length")]

    def clear_prefix_cache(self) -> None: ...

    def _enqueue(self, row: Row) -> None:
        self.rows.append(row)

    def _release(self, row: Row) -> None:
        self.rows.remove(row)


def test_completions_come_in_the_order_of_requests_and_samples(model):
    engine = LastFirst(model)
    one = SamplingParams(max_tokens=1)
    requests = [Request([10], 0.5, one, n=2), Request([20], None, one), Request([30], 1, one, n=3)]
    done = engine.generate(requests)
    assert [each.tokens for each in done] == [(10,), (11,), (20,), (30,), (31,), (32,)]
    assert [each.index for each in done] == [0, 1, 0, 0, 1, 2]
    assert done[0].gates == (0.5,) * 6
    assert done[2].gates == tuple(model.learned_gates().tolist())
    assert engine.stats() == EngineStats(finished=6)


def test_an_id_is_in_use_until_the_last_sample_has_ended(model):
    engine = LastFirst(model)
    twin = Request([1], 0.5, SamplingParams(max_tokens=1), id="twin", n=2, stream=True)
    engine.add(twin)
    engine.step()
    with pytest.raises(EngineError, match="'twin' is under way"):
        engine.add(twin)
    assert engine.cancel("twin")
    (ended,) = engine.step()
    assert (ended.index, ended.finish_reason) == (0, "cancelled")
    assert not engine.cancel("twin")
    engine.add(twin)  # and it is not cancelled
    assert [engine.step()[0].finish_reason for _ in range(2)] == ["length"] * 2
    assert engine.stats() == EngineStats(finished=3, cancelled=1)
    deltas = engine.take_deltas()
    assert [(delta.request_id, delta.index) for delta in deltas] == [("twin", i) for i in (1, 1, 0)]
    assert engine.take_deltas() == []


# Refusals, in front of a real engine


BAD_REQUESTS = {
    "empty prompt": (Request([]), EngineError, "prompt is empty"),
    "negative token": (Request([3, -1]), EngineError, "token -1 .* 0 to 60"),
    "token too large": (Request([61]), EngineError, "token 61 .* 0 to 60"),
    "too long": (
        Request([1] * 88, sampling=SamplingParams(max_tokens=9)),
        EngineError,
        "88 prompt tokens and max_tokens 9 make 97; the context is 96",
    ),
    "gate range": (Request([1], 1.5), GateError, r"gate 0 is 1.5.*\[0, 1\]"),
    "gate length": (Request([1], [0.5] * 4), GateError, "4 gates given.*3 .*6"),
    "gate NaN": (Request([1], math.nan), GateError, "nan"),
    "gate name": (Request([1], "loud"), GateError, "'loud'.*names of this model are learned"),
    "stop without tokenizer": (
        Request([1], sampling=SamplingParams(stop=("x",), max_tokens=3)),
        EngineError,
        "stop strings need a tokenizer",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_refused_and_the_others_go_on(model, name):
    bad, error, message = BAD_REQUESTS[name]
    if name != "too long":
        bad = Request(bad.prompt, bad.gates, SamplingParams(max_tokens=3, stop=bad.sampling.stop))
    good = Request([5, 6], 0.5, SamplingParams(max_tokens=6))
    expected = Engine(model).generate([good])[0].tokens
    engine = Engine(model, max_batch=2)
    engine.add(good)
    engine.step()
    with pytest.raises(error, match=message):
        engine.add(bad)
    done = []
    while engine.has_work:
        done += engine.step()
    assert [completion.tokens for completion in done] == [expected]
    # In one call, none is queued.
    with pytest.raises(error, match=message):
        engine.generate([good, bad])
    assert not engine.has_work
    assert engine.generate([good])[0].tokens == expected


def test_a_plain_model_refuses_gates(tiny_model):
    engine = Engine(tiny_model(plain=True))
    with pytest.raises(GateError, match="plain"):
        engine.add(Request([1], 0.5, SamplingParams(max_tokens=1)))
    assert not engine.has_work


def test_ids_are_unique_among_requests_under_way(model):
    engine = Engine(model)
    twin = Request([1], 0.5, SamplingParams(max_tokens=2), id="twin")
    engine.add(twin)
    with pytest.raises(EngineError, match="'twin' is under way"):
        engine.add(twin)
    with pytest.raises(EngineError, match="idle"):
        engine.generate([Request([1], 0.5, SamplingParams(max_tokens=2))])
    run_to_end(engine)
    with pytest.raises(EngineError, match="same id"):
        engine.generate([twin, twin])
    assert len({Request([1]).id for _ in range(100)}) == 100


@pytest.mark.parametrize("prompt", [[1.5], "text", [None], ["1"]])
def test_a_prompt_that_is_not_token_ids_is_refused_and_the_engine_goes_on(model, prompt):
    engine = Engine(model)
    with pytest.raises(EngineError, match="not a token id"):
        engine.generate([Request(prompt, sampling=SamplingParams(max_tokens=2))])
    assert len(engine.generate([Request([1], sampling=SamplingParams(max_tokens=2))])) == 1


# Cancelling and samples


def test_cancel(model):
    engine = Engine(model, max_batch=2)
    requests = [Request([i + 1], 0.5, SamplingParams(max_tokens=10), id=f"r{i}") for i in range(4)]
    expected = [alone(model, request)[0] for request in requests]
    for request in requests:
        engine.add(request)
    assert engine.step() == []
    assert engine.cancel("r0")  # in the batch
    assert engine.cancel("r3")  # waiting
    assert not engine.cancel("nobody")
    cancelled = {c.request_id: c for c in engine.step() if c.finish_reason == "cancelled"}
    assert set(cancelled) == {"r0", "r3"}
    assert cancelled["r0"].tokens == expected[0].tokens[: len(cancelled["r0"].tokens)]
    assert cancelled["r3"].tokens == ()
    assert {name: c.tokens for name, c in run_to_end(engine).items()} == {
        "r1": expected[1].tokens,
        "r2": expected[2].tokens,
    }
    assert not engine.cancel("r1")
    engine.add(requests[0])  # the id is free again
    engine.cancel("r0")
    assert [c.finish_reason for c in engine.step()] == ["cancelled"]
    assert not engine.has_work


def test_samples_of_a_request(model):
    sampling = SamplingParams(max_tokens=8, temperature=1.5, seed=11, logprobs=True)
    request = Request(random_prompts(1, 40, 40)[0], 0.7, sampling, n=5)
    together = Engine(model, max_batch=3).generate([request])
    assert [each.index for each in together] == [0, 1, 2, 3, 4]
    assert len({each.tokens for each in together}) == 5
    assert together[0].cached_tokens == 0
    assert all(each.cached_tokens == 40 // BLOCK * BLOCK for each in together[1:])
    for a, b in zip(together, alone(model, request), strict=True):
        assert_same(a, b)
    one = Request(request.prompt, 0.7, sampling)
    assert_same(together[0], alone(model, one)[0])
    # Neighbouring seeds share no sample.
    other = SamplingParams(max_tokens=8, temperature=1.5, seed=12)
    others = Engine(model).generate([Request(request.prompt, 0.7, other, n=5)])
    assert not {each.tokens for each in together} & {each.tokens for each in others}


def test_cancelling_ends_every_sample(model):
    engine = Engine(model, max_batch=2)
    engine.add(Request([1, 2], 0.5, SamplingParams(max_tokens=50), id="four", n=4))
    engine.step()
    assert (engine.active, engine.waiting) == (2, 2)
    engine.cancel("four")
    ended = engine.step()
    assert sorted(each.index for each in ended) == [0, 1, 2, 3]
    assert {each.finish_reason for each in ended} == {"cancelled"}
    assert not engine.has_work
    assert engine.stats().cancelled == 4


@pytest.mark.parametrize("n", [0, 129, 1.5, None])
def test_refuses_a_bad_number_of_samples(model, n):
    with pytest.raises(EngineError, match=r"n is .* 1 to 128"):
        Engine(model).add(Request([1], 0.5, SamplingParams(max_tokens=1), n=n))


def test_who_does_not_stream_gives_no_deltas(model):
    engine = Engine(model)
    engine.generate([Request([1], 0.5, SamplingParams(max_tokens=4))])
    assert engine.take_deltas() == []
