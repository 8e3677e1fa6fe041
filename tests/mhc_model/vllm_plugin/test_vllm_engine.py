"""vLLM with gates, against a loop without cache or batch."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch
from vllm_engines import NEEDS_VLLM

from mhc_model import Engine, EngineError, GateError, Request, SamplingParams

pytestmark = NEEDS_VLLM

COUNT, MAX_TOKENS = 16, 12
WITHOUT_GATES = ("plain", "identity")
VARIANTS = ["identity", "accepting", "kronecker", "free", "single_pass", "static"]
MODES = [
    pytest.param({}, id="eager"),
    pytest.param({"compiled": True}, id="compiled"),
    pytest.param({"prefill_chunk": 16}, id="chunks"),
]


def requests_of(kind: str, count: int = COUNT, longest: int = 90, **fields) -> list[Request]:
    """Prompts of different lengths, each with gates of its own; the first has the learned ones, and
    some have others for their answer."""
    generator = torch.Generator().manual_seed(count)
    lengths = torch.linspace(1, longest, count).long().tolist()
    gates = [None, *torch.rand(count, 6, generator=generator)]
    gates[1:3] = [torch.zeros(6), torch.ones(6)]
    if kind == "limit" and count > 8:  # a behaviour's name, and other gates for the answer
        gates[3:9:2] = ["direct", torch.rand(2, 6, generator=generator), {"answer": 1.0}]
        gates[9:10] = [{"prompt": gates[4], "answer": "direct"}]
    sampling = SamplingParams(max_tokens=MAX_TOKENS, logprobs=True)
    return [
        Request(
            torch.randint(0, 61, (size,), generator=generator).tolist(),
            gates=None if kind in WITHOUT_GATES else gates[i],
            sampling=sampling,
            **fields,
        )
        for i, size in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def equal(model_of, reference):
    """`equal(kind, requests, completions)`: tokens identical, log-probabilities to 1e-4."""

    def check(kind: str, requests, completions) -> None:
        for request, got in zip(requests, completions, strict=True):
            tokens, logprobs = reference(
                model_of(kind), request.prompt, request.gates, len(got.tokens)
            )
            assert got.tokens == tokens
            assert got.logprobs == pytest.approx(logprobs, abs=1e-4)

    return check


@pytest.mark.parametrize("options", MODES)
def test_a_mixed_batch_equals_lone_runs_and_the_uncached_model(engine_of, equal, options):
    engine = engine_of("limit", **options)
    requests = requests_of("limit")
    together = engine.generate(requests)
    assert len({(completion.gates, completion.answer_gates) for completion in together}) == COUNT
    assert sum(completion.answer_gates is not None for completion in together) == 3
    equal("limit", requests, together)
    engine.clear_prefix_cache()
    for request, got in zip(requests, together, strict=True):
        (alone,) = engine.generate([request])
        assert alone.tokens == got.tokens
        assert alone.logprobs == pytest.approx(got.logprobs, abs=1e-4)
        assert alone.gates == got.gates


@pytest.mark.parametrize("kind", ["lite", "iterations", "plain", "llama", "qwen3", "gpt2"])
def test_every_family_and_projection(engine_of, equal, kind):
    requests = requests_of(kind)
    equal(kind, requests, engine_of(kind).generate(requests))


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_member_of_the_family(engine_of, equal, kind):
    requests = requests_of(kind)
    equal(kind, requests, engine_of(kind).generate(requests))
    equal(kind, requests[:4], engine_of(kind, compiled=True).generate(requests[:4]))


def test_a_model_whose_streams_do_not_mix_refuses_gates(engine_of):
    request = Request([1, 2, 3], 0.5, SamplingParams(max_tokens=1))
    with pytest.raises(GateError, match=r"mhc\.projection: identity"):
        engine_of("identity").generate([request])


def test_in_16_bits_connections_and_gates_keep_32(engine_of, model_of):
    engine = engine_of("limit", dtype=torch.bfloat16)
    for name, parameter in engine.model.named_parameters():
        precise = "connection." in name or name == "gate_logits"
        assert parameter.dtype == (torch.float32 if precise else torch.bfloat16), name
    sampling = SamplingParams(max_tokens=1, logprobs=True)
    requests = [Request(each.prompt, each.gates, sampling) for each in requests_of("limit")]
    expected = [c.logprobs for c in Engine(model_of("limit")).generate(requests)]
    errors = [
        abs(got.logprobs[0] - wanted[0])
        for got, wanted in zip(engine.generate(requests), expected, strict=True)
    ]
    assert max(errors) < 0.2


def test_compiled_code_is_not_taken_for_another_projection(engine_of, equal):
    """vLLM keeps compiled code on disk, by the configuration of the model."""
    requests = requests_of("lite")
    equal("lite", requests, engine_of("lite", compiled=True).generate(requests))


SHAPES = [
    {"presence_penalty": 2.0, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.8},
    {"logit_bias": {3: 100.0, 4: -100.0}, "frequency_penalty": 1.0},
    {"allowed_token_ids": tuple(range(0, 61, 2))},
    {"min_tokens": 9, "stop_token_ids": tuple(range(0, 61, 3))},
    {"prompt_logprobs_from": 0, "prompt_ranks": True, "top_logprobs": 2},
    {},
]


def test_shaped_rows_are_those_of_our_engine(engine_of, model_of):
    requests = [
        Request(each.prompt, each.gates, SamplingParams(max_tokens=14, logprobs=True, **shape))
        for each, shape in zip(requests_of("limit", 7), SHAPES, strict=True)
    ]
    ours = Engine(model_of("limit")).generate(requests)
    for got, wanted in zip(engine_of("limit").generate(requests), ours, strict=True):
        assert (got.tokens, got.finish_reason) == (wanted.tokens, wanted.finish_reason)
        assert got.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
    assert got.prompt_logprobs is None
    ranks = [done.prompt_logprobs.ranks for done in ours if done.prompt_logprobs]
    assert ranks == [
        done.prompt_logprobs.ranks
        for done in engine_of("limit").generate(requests)
        if done.prompt_logprobs
    ]


def test_min_p_leaves_the_likeliest(engine_of):
    sampling = {"max_tokens": 12, "temperature": 2.0, "seed": 3}
    prompt = requests_of("limit")[5].prompt
    greedy, sure, free = engine_of("limit").generate(
        [
            Request(prompt, None, SamplingParams(max_tokens=12)),
            Request(prompt, None, SamplingParams(**sampling, min_p=1.0)),
            Request(prompt, None, SamplingParams(**sampling)),
        ]
    )
    assert sure.tokens == greedy.tokens != free.tokens


def test_gates_change_the_output(engine_of):
    """Else nothing above would be a test of gates."""
    prompt = requests_of("limit")[-1].prompt
    sampling = SamplingParams(max_tokens=1, logprobs=True)
    given = [None, 0.0, 1.0, [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]
    first = engine_of("limit").generate([Request(prompt, gates, sampling) for gates in given])
    values = sorted(completion.logprobs[0] for completion in first)
    assert all(b - a > 1e-3 for a, b in itertools.pairwise(values))


def test_preempted_requests_go_on_with_their_gates(engine_of, equal):
    # Nine pages of 32 tokens, one of them unused: not enough for sixteen answers of 60 tokens.
    engine = engine_of("limit", kv_cache_bytes=9 * 3 * 2 * 4 * 32 * 32 * 4, prefix_cache_bytes=0)
    assert engine.stats().kv_capacity <= 9 * 32
    requests = [
        Request(each.prompt, each.gates, SamplingParams(max_tokens=60, logprobs=True))
        for each in requests_of("limit", longest=20)
    ]
    for request in requests:
        engine.add(request)
    inner = list(engine._scheduler.waiting)
    done = {}
    while engine.has_work:
        done.update({completion.request_id: completion for completion in engine.step()})
    assert sum(request.num_preemptions for request in inner) > 0
    equal("limit", requests, [done[request.id] for request in requests])


def test_requests_join_others_and_stream(engine_of, equal):
    engine = engine_of("limit")
    requests = requests_of("limit", stream=True)
    done, deltas = {}, {request.id: [] for request in requests}
    waiting = list(requests)
    while waiting or engine.has_work:
        if waiting:
            engine.add(waiting.pop(0))
        for completion in engine.step():
            done[completion.request_id] = completion
        for delta in engine.take_deltas():
            deltas[delta.request_id].append(delta)
    completions = [done[request.id] for request in requests]
    equal("limit", requests, completions)
    for completion in completions:
        parts = deltas[completion.request_id]
        assert len(parts) == MAX_TOKENS
        assert sum((part.tokens for part in parts), ()) == completion.tokens
        assert sum((part.logprobs for part in parts), ()) == completion.logprobs


def test_a_cancelled_request_ends_and_the_others_go_on(engine_of, equal):
    engine = engine_of("limit")
    requests = requests_of("limit", 4)
    for request in requests:
        engine.add(request)
    engine.step()
    assert engine.cancel(requests[1].id)
    assert not engine.cancel("unknown")
    done = {}
    while engine.has_work:
        done.update({completion.request_id: completion for completion in engine.step()})
    assert done[requests[1].id].finish_reason == "cancelled"
    kept = [request for request in requests if request is not requests[1]]
    equal("limit", kept, [done[request.id] for request in kept])
    assert engine.stats().kv_tokens == 0


# Gates that differ from the first sublayer on; layer 0's own keys and values know no gates, those
# of the layers after it do.
OTHERS = [[1.0, 0.0, 0.5, 0.5, 1.0, 0.5], [0.0, 1.0, 0.5, 0.5, 1.0, 0.5], None, 0.25]


@pytest.mark.parametrize("options", MODES[:2])
def test_the_prefix_cache_knows_gates(engine_of, equal, options):
    engine = engine_of("limit", **options)
    prompt = requests_of("limit")[-1].prompt
    sampling = SamplingParams(max_tokens=MAX_TOKENS, logprobs=True)
    for gates in OTHERS:
        request = Request(prompt, gates, sampling)
        (got,) = engine.generate([request])
        assert got.cached_tokens == 0, "keys and values of other gates"
        equal("limit", [request], [got])
    for gates in OTHERS:
        request = Request(prompt, gates, sampling)
        (again,) = engine.generate([request])
        assert again.cached_tokens == 64, "the whole pages of 90 tokens"
        equal("limit", [request], [again])


def test_a_salt_of_the_callers_own_stays_in_force(engine_of):
    engine = engine_of("limit")._engine
    from vllm import SamplingParams as VLLMSampling
    from vllm.inputs.engine import tokens_input

    salts = []
    for gates in (0.5, 0.25, None):
        for salt in (None, "a", "b"):
            parameters = VLLMSampling(extra_args={"gates": gates})
            request = engine.input_processor.process_inputs(
                "x", tokens_input([1, 2], cache_salt=salt), parameters, ("generate",)
            )
            salts.append(request.cache_salt)
            assert request.sampling_params.extra_args.get("gates") == (gates and [gates] * 6)
            assert parameters.extra_args == {"gates": gates}, "the caller's own"
    assert len(set(salts)) == 9
    assert None not in salts


def test_without_extra_args_a_request_is_salted_too(engine_of):
    from vllm import SamplingParams as VLLMSampling
    from vllm.inputs.engine import tokens_input

    process = engine_of("limit")._engine.input_processor.process_inputs
    bare = process("x", tokens_input([1, 2]), VLLMSampling(), ("generate",))
    named = process("x", tokens_input([1]), VLLMSampling(extra_args={"gates": None}), ("generate",))
    assert bare.cache_salt == named.cache_salt
    assert bare.cache_salt is not None


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (1.5, r"gate 0 is 1.5; allowed: 1 number \(global\), 3 .* or 6 .*\[0, 1\]"),
        ([0.5] * 5, "5 gates given; allowed"),
        ([0.5, float("nan"), 0.5], "gate 1 is nan"),
        ("wide open", "gates are 'wide open'"),
        ([True] * 6, "gate 0 is True, not a number"),
    ],
)
def test_bad_gates_are_refused_and_the_engine_goes_on(engine_of, equal, gates, message):
    from vllm import SamplingParams as VLLMSampling
    from vllm.inputs.engine import tokens_input

    engine = engine_of("limit")
    with pytest.raises(GateError, match=message):
        engine.add(Request([1, 2], gates))
    with pytest.raises(GateError, match=message):  # vLLM's own way in
        engine._engine.add_request(
            "bad", tokens_input([1, 2]), VLLMSampling(extra_args={"gates": gates})
        )
    assert not engine._engine.has_unfinished_requests()
    requests = requests_of("limit", 2)
    equal("limit", requests, engine.generate(requests))


def test_a_plain_model_takes_no_gates(engine_of):
    from vllm import SamplingParams as VLLMSampling
    from vllm.inputs.engine import tokens_input

    engine = engine_of("plain")
    with pytest.raises(GateError, match="plain"):
        engine.add(Request([1], 0.5))
    with pytest.raises(GateError, match="plain"):
        engine._engine.add_request(
            "bad", tokens_input([1]), VLLMSampling(extra_args={"gates": 0.5})
        )


def test_bad_requests_are_refused_as_by_the_torch_engine(engine_of):
    engine = engine_of("limit")
    for request, message in (
        (Request([]), "the prompt is empty"),
        (Request([61]), "token 61 is outside"),
        (Request([1] * 150, sampling=SamplingParams(max_tokens=11)), "make 161; the context is"),
        (Request([1], n=0), "n is 0"),
    ):
        with pytest.raises(EngineError, match=message):
            engine.add(request)
    assert not engine.has_work


def test_the_end_of_an_engine_is_not_that_of_another(checkpoint_of, engine_of, equal):
    from mhc_model.vllm_plugin.engine import VLLMEngine

    engine = engine_of("limit")
    passing = VLLMEngine.from_checkpoint(checkpoint_of("plain"), prefix_cache_bytes=0)
    passing.generate(requests_of("plain", 1))
    del passing
    gc.collect()
    requests = requests_of("limit", 2)
    equal("limit", requests, engine.generate(requests))


def test_prompts_are_scored_to_the_end_of_the_context(engine_of, model_of):
    """vLLM generates a token also here, for which there is no position."""
    generator = torch.Generator().manual_seed(5)
    prompt = torch.randint(0, 61, (160,), generator=generator).tolist()
    sampling = SamplingParams(max_tokens=0, prompt_logprobs_from=3, top_logprobs=2)
    request = Request(prompt, 0.3, sampling)
    (got,) = engine_of("limit").generate([request])
    (expected,) = Engine(model_of("limit")).generate([request])
    assert got.tokens == ()
    assert got.prompt_logprobs.logprobs == pytest.approx(
        expected.prompt_logprobs.logprobs, abs=1e-4
    )
    for ours, theirs in zip(got.prompt_logprobs.top, expected.prompt_logprobs.top, strict=True):
        assert [value for _, value in ours] == pytest.approx(
            [value for _, value in theirs], abs=1e-4
        )


def test_samples_depend_on_the_seed_alone(engine_of):
    engine = engine_of("limit")
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, top_k=20, seed=7)
    alone = engine.generate([Request([1, 2, 3], 0.5, sampling, n=3)])
    others = [Request([4, i], i / 5, sampling) for i in range(5)]
    *_, again = engine.generate([*others, Request([1, 2, 3], 0.5, sampling)])
    assert again.tokens == alone[0].tokens
    assert len({completion.tokens for completion in alone}) == 3


def test_a_name_may_come_again_with_other_gates(engine_of, model_of, reference, monkeypatch):
    """vLLM can be told to keep the names of requests, and what the runner knows goes by them."""
    from vllm import SamplingParams as VLLMSampling
    from vllm.inputs.engine import tokens_input

    monkeypatch.setenv("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1")
    engine = engine_of("limit")._engine
    prompt = requests_of("limit")[-1].prompt
    for gates in (0.0, 1.0):
        parameters = VLLMSampling(
            max_tokens=1, temperature=0, logprobs=0, detokenize=False, extra_args={"gates": gates}
        )
        engine.add_request("same", tokens_input(prompt), parameters)
        (output,) = engine.step()
        ((token,), (logprob,)) = reference(model_of("limit"), prompt, gates, 1)
        assert output.outputs[0].logprobs[0][token].logprob == pytest.approx(logprob, abs=1e-4)


def test_whole_passes_go_through_the_same_weights(engine_of, model_of):
    """What routing and embeddings use: the decoder without vLLM's pages."""
    engine = engine_of("limit")
    tokens = torch.tensor([requests_of("limit")[-1].prompt])
    gates = torch.rand(1, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model_of("limit")(tokens, gates)
        torch.testing.assert_close(engine.model(tokens, gates), expected, atol=1e-4, rtol=0)
