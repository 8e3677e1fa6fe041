"""The engine against a loop without cache or batch, and its promises about who shares a batch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mhc_model import (
    Decoder,
    Engine,
    EngineError,
    GateError,
    ModelConfig,
    Request,
    SamplingParams,
    expand_gates,
)
from mhc_model.tokenizer import GPT2_PATTERN, TiktokenTokenizer, Tokenizer


@pytest.fixture(scope="module")
def model(tiny_model) -> Decoder:
    return tiny_model()


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the end of document 256."""
    return TiktokenTokenizer({bytes([i]): i for i in range(256)}, GPT2_PATTERN, "<|end|>")


@pytest.fixture(scope="module")
def alphabet(byte_tokenizer) -> Engine:
    """A model that continues a with b, b with c, ... y with the two bytes of é, and these with z,
    which ends the document."""
    size = byte_tokenizer.vocab_size
    model = Decoder(ModelConfig(vocab_size=size, n_layers=1, n_heads=1, d_model=258))
    chain = [*range(ord("a"), ord("z")), *"é".encode(), ord("z"), size - 1]
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(size, 258))
        # Output matrices start as zeros: the hidden state is the embedding of the last token.
        for token, following in itertools.pairwise(chain):
            model.head.weight[following, token] = 1.0
    return Engine(model, byte_tokenizer, max_batch=4)


def prompts(n: int, seed: int = 0) -> list[list[int]]:
    """n prompts of 1 to 20 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 21, (n,), generator=generator).tolist()
    return [torch.randint(0, 61, (size,), generator=generator).tolist() for size in lengths]


@torch.no_grad()
def reference(model: Decoder, prompt: list[int], gates, max_tokens: int):
    """Greedy decoding with a whole forward pass a token: tokens, log-probabilities, margins."""
    tokens, logprobs, margins = list(prompt), [], []
    rows = None if gates is None else expand_gates(gates, model.config.n_layers)[None]
    for _ in range(max_tokens):
        scores = model(torch.tensor([tokens]), rows)[0, -1].log_softmax(dim=-1)
        best = scores.topk(2)
        tokens.append(int(best.indices[0]))
        logprobs.append(float(best.values[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return tuple(tokens[len(prompt) :]), logprobs, margins


GATES = [None, 0, 1, 0.5, [0.1, 0.9, 0.4], [0.0, 1.0, 0.2, 0.8, 0.6, 0.3], (1.0, 0.0, 1.0), 0.25]


def mixed_requests() -> list[Request]:
    """Eight requests of different lengths, gates and sampling parameters."""
    sampling = [
        SamplingParams(max_tokens=12, logprobs=True),
        SamplingParams(max_tokens=3, logprobs=True),
        SamplingParams(max_tokens=15, temperature=1.0, seed=5, logprobs=True),
        SamplingParams(max_tokens=9, temperature=0.7, top_k=5, seed=5, logprobs=True),
        SamplingParams(max_tokens=1, logprobs=True),
        SamplingParams(max_tokens=12, temperature=2.0, top_p=0.8, seed=7, logprobs=True),
        SamplingParams(max_tokens=20, temperature=1.3, top_k=9, top_p=0.9, seed=8, logprobs=True),
        SamplingParams(max_tokens=14, logprobs=True),
    ]
    return [
        Request(prompt, gates, parameters)
        for prompt, gates, parameters in zip(prompts(8), GATES, sampling, strict=True)
    ]


def assert_same(a, b) -> None:
    assert a.tokens == b.tokens
    assert a.finish_reason == b.finish_reason
    assert a.gates == b.gates
    torch.testing.assert_close(
        torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("plain", [False, True])
def test_greedy_equals_the_uncached_loop(tiny_model, plain):
    model = tiny_model(plain=plain, n_kv_heads=2)
    engine = Engine(model, max_batch=3)
    requests = [
        Request(prompt, None if plain else gates, SamplingParams(max_tokens=16, logprobs=True))
        for prompt, gates in zip(prompts(8), GATES, strict=True)
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


def test_a_mixed_batch_equals_one_by_one(model):
    requests = mixed_requests()
    alone = [Engine(model, max_batch=1).generate([request])[0] for request in requests]
    for max_batch in (8, 3, 2):
        together = Engine(model, max_batch=max_batch).generate(requests)
        for a, b, request in zip(together, alone, requests, strict=True):
            assert_same(a, b)
            assert a.request_id == request.id
            assert len(a.tokens) == request.sampling.max_tokens
    backwards = Engine(model, max_batch=4).generate(requests[::-1])
    for a, b in zip(backwards[::-1], alone, strict=True):
        assert_same(a, b)


def test_requests_join_late(model):
    requests = mixed_requests()
    alone = {r.id: Engine(model).generate([r])[0] for r in requests}
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
    prompt, sampling = prompts(1)[0], SamplingParams(max_tokens=8, logprobs=True)
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


# How a completion ends


@pytest.mark.parametrize(
    ("prompt", "parameters", "text", "tokens", "reason"),
    [
        ("a", {"max_tokens": 3}, "bcd", 3, "length"),
        ("a", {}, "bcdefghijklmnopqrstuvwxyéz", 27, "stop"),
        ("z", {}, "", 0, "stop"),
        ("a", {"stop_token_ids": (ord("d"),)}, "bc", 2, "stop"),
        ("a", {"stop_token_ids": (ord("b"),)}, "", 0, "stop"),
        ("a", {"stop": ("d",)}, "bc", 2, "stop"),
        ("a", {"stop": ("b",)}, "", 0, "stop"),
        ("a", {"stop": ("fgh",)}, "bcde", 4, "stop"),
        ("a", {"stop": ("fgh", "ghi", "h")}, "bcde", 4, "stop"),
        ("a", {"stop": ("xyz", "hi")}, "bcdefg", 6, "stop"),
        ("a", {"stop": ("é",)}, "bcdefghijklmnopqrstuvwxy", 24, "stop"),
        ("a", {"stop": ("yé",)}, "bcdefghijklmnopqrstuvwx", 23, "stop"),
        ("a", {"stop": ("never",)}, "bcdefghijklmnopqrstuvwxyéz", 27, "stop"),
        ("a", {"stop": ("bcd",), "max_tokens": 2}, "bc", 2, "length"),
        ("a", {"stop": ("bcd",), "max_tokens": 3}, "", 0, "stop"),
        ("a", {"stop": ("é",), "max_tokens": 25}, "bcdefghijklmnopqrstuvwxy�", 25, "length"),
        ("abc", {"stop": ("cd",), "max_tokens": 4}, "defg", 4, "length"),
    ],
)
def test_endings(alphabet, prompt, parameters, text, tokens, reason):
    """`stop` cuts the text exactly, also across tokens; the prompt is not searched."""
    sampling = SamplingParams(logprobs=True, **parameters)
    request = Request(alphabet.tokenizer.encode(prompt), None, sampling)
    (completion,) = alphabet.generate([request])
    assert completion.text == text
    assert completion.finish_reason == reason
    assert len(completion.tokens) == len(completion.logprobs) == tokens
    assert alphabet.tokenizer.decode(completion.tokens) == text


def test_stop_inside_a_token_keeps_whole_tokens_only(tiny_model):
    """Tokens of several letters: the text is cut inside one, the tokens before it."""
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256, b"cd": 257}
    tokenizer = TiktokenTokenizer(ranks, GPT2_PATTERN, "<|end|>")
    model = Decoder(ModelConfig(vocab_size=259, n_layers=1, n_heads=1, d_model=260))
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(259, 260))
        model.head.weight[256, ord("x")] = model.head.weight[257, 256] = 1.0
        model.head.weight[256, 257] = 1.0
    engine = Engine(model, tokenizer)
    sampling = SamplingParams(stop=("da",), max_tokens=9, logprobs=True)
    (completion,) = engine.generate([Request([ord("x")], None, sampling)])
    assert completion.text == "abc"
    assert completion.tokens == (256,)
    assert len(completion.logprobs) == 1


def test_logprobs_only_where_asked_for(alphabet):
    (completion,) = alphabet.generate([Request([97], None, SamplingParams(max_tokens=2))])
    assert completion.logprobs is None
    assert completion.gates is None


def test_cancel(model):
    engine = Engine(model, max_batch=2)
    requests = [Request([i + 1], 0.5, SamplingParams(max_tokens=10), id=f"r{i}") for i in range(4)]
    alone = [Engine(model).generate([request])[0] for request in requests]
    for request in requests:
        engine.add(request)
    assert engine.step() == []
    assert engine.cancel("r0")  # in the batch
    assert engine.cancel("r3")  # waiting
    assert not engine.cancel("nobody")
    cancelled = {c.request_id: c for c in engine.step() if c.finish_reason == "cancelled"}
    assert set(cancelled) == {"r0", "r3"}
    assert cancelled["r0"].tokens == alone[0].tokens[: len(cancelled["r0"].tokens)]
    assert cancelled["r3"].tokens == ()
    done = {}
    while engine.has_work:
        done.update((c.request_id, c) for c in engine.step())
    assert {name: c.tokens for name, c in done.items()} == {
        "r1": alone[1].tokens,
        "r2": alone[2].tokens,
    }
    assert not engine.cancel("r1")
    engine.add(requests[0])  # the id is free again
    engine.cancel("r0")
    assert [c.finish_reason for c in engine.step()] == ["cancelled"]
    assert not engine.has_work


# Refusals

BAD_REQUESTS = {
    "empty prompt": (Request([]), EngineError, "prompt is empty"),
    "negative token": (Request([3, -1]), EngineError, "token -1 .* 0 to 60"),
    "token too large": (Request([61]), EngineError, "token 61 .* 0 to 60"),
    "too long": (
        Request([1] * 40, sampling=SamplingParams(max_tokens=9)),
        EngineError,
        "40 prompt tokens and max_tokens 9 make 49; the context is 48",
    ),
    "gate range": (Request([1], 1.5), GateError, r"gate 0 is 1.5.*\[0, 1\]"),
    "gate length": (Request([1], [0.5] * 4), GateError, "4 gates given.*3 .*6"),
    "gate NaN": (Request([1], math.nan), GateError, "nan"),
    "gate text": (Request([1], "learned"), GateError, "'learned'"),
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


def test_the_context_can_be_filled_to_the_last_token(model):
    request = Request([1] * 40, 0.5, SamplingParams(max_tokens=8))
    assert len(Engine(model).generate([request])[0].tokens) == 8
    with pytest.raises(EngineError, match="the context is 47"):
        Engine(model, max_seq_len=47).generate([request])


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
    while engine.has_work:
        engine.step()
    with pytest.raises(EngineError, match="same id"):
        engine.generate([twin, twin])
    assert len({Request([1]).id for _ in range(100)}) == 100


@pytest.mark.parametrize("arguments", [{"max_batch": 0}, {"max_seq_len": 49}, {"max_seq_len": 0}])
def test_refuses_bad_sizes(model, arguments):
    with pytest.raises(EngineError):
        Engine(model, **arguments)


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 1 << 63},
        {"stop": "x"},
        {"stop": ("",)},
    ],
)
def test_refuses_bad_sampling_parameters(parameters):
    with pytest.raises(EngineError, match=next(iter(parameters))):
        SamplingParams(**parameters)


def test_a_seed_is_reproducible_and_seeds_differ(model):
    def draw(seed: int, temperature: float = 1.5) -> tuple[int, ...]:
        sampling = SamplingParams(max_tokens=6, temperature=temperature, seed=seed)
        return Engine(model).generate([Request([7, 8], 0.5, sampling)])[0].tokens

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) == 4
    # As the temperature goes to zero, sampling becomes greedy.
    assert draw(3, 1e-5) == draw(4, 0.0)


@pytest.mark.parametrize("prompt", [[1.5], "text", [None], ["1"]])
def test_a_prompt_that_is_not_token_ids_is_refused_and_the_engine_goes_on(tiny_model, prompt):
    engine = Engine(tiny_model())
    with pytest.raises(EngineError, match="not a token id"):
        engine.generate([Request(prompt, sampling=SamplingParams(max_tokens=2))])
    assert len(engine.generate([Request([1], sampling=SamplingParams(max_tokens=2))])) == 1


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 2.5},
        {"top_k": 1.5},
        {"seed": 1.5},
        {"seed": None},
        {"temperature": None},
        {"temperature": "0"},
        {"top_p": True},
    ],
)
def test_sampling_fields_of_a_wrong_type_are_refused(field):
    with pytest.raises(EngineError, match=rf"{next(iter(field))} is .* must be a"):
        SamplingParams(**field)
