"""Chunked prompts, samples, log-probabilities of prompts, streams, the memory budget, reuse."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict

import pytest
import torch

from mhc_model import Decoder, Engine, EngineError, ModelConfig, Request, SamplingParams
from mhc_model.decoder import KVCache
from mhc_model.engine.prefix_cache import BLOCK, block_names
from mhc_model.tokenizer import GPT2_PATTERN, TiktokenTokenizer

GATES = [None, 0, 1, 0.5, [0.1, 0.9, 0.4], [0.0, 1.0, 0.2, 0.8, 0.6, 0.3], (1.0, 0.0, 1.0), 0.25]


@pytest.fixture(scope="module")
def model(tiny_model) -> Decoder:
    return tiny_model(max_seq_len=96)


def random_prompts(n: int, least: int, most: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(least, most + 1, (n,), generator=generator).tolist()
    return [torch.randint(0, 61, (size,), generator=generator).tolist() for size in lengths]


def requests(n: int = 16, least: int = 1, most: int = 60, **sampling) -> list[Request]:
    params = {"max_tokens": 10, "logprobs": True, **sampling}
    return [
        Request(prompt, gates, SamplingParams(**params))
        for prompt, gates in zip(random_prompts(n, least, most), GATES * n, strict=False)
    ]


def alone(model: Decoder, request: Request, **options):
    options = {"prefix_cache_bytes": 0, **options}
    return Engine(model, max_batch=1, **options).generate([request])


def assert_same(a, b) -> None:
    assert (a.tokens, a.finish_reason, a.gates, a.index) == (
        b.tokens,
        b.finish_reason,
        b.gates,
        b.index,
    )
    torch.testing.assert_close(
        torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4, rtol=0
    )


# Prompts in chunks


@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_chunks_change_nothing(model, chunk, temperature):
    wanted = requests(temperature=temperature, top_k=20, seed=3)
    engine = Engine(model, max_batch=5, prefill_chunk=chunk)
    engine.add(Request([1], 0.5, SamplingParams(max_tokens=95), id="decodes all the time"))
    engine.step()
    for request in wanted:
        engine.add(request)
    done = {}
    while engine.has_work:
        done.update((each.request_id, each) for each in engine.step())
    for request in wanted:
        assert_same(done[request.id], alone(model, request)[0])


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


# Samples


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


# Log-probabilities of prompts, and the likeliest tokens


@torch.no_grad()
def uncached_scores(model, sequence, gates):
    rows = model.gate_rows([gates])
    return model(torch.tensor([sequence]), rows)[0].log_softmax(dim=-1)


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
    done = {}
    while engine.has_work:
        done.update((each.request_id, each) for each in engine.step())
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


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_logprobs": 3},
        {"top_logprobs": 21, "logprobs": True},
        {"top_logprobs": -1, "logprobs": True},
        {"prompt_logprobs_from": -1},
        {"prompt_logprobs_from": 1.5},
        {"prompt_logprobs_from": 0, "max_tokens": -1},
    ],
)
def test_refuses_bad_logprob_parameters(parameters):
    with pytest.raises(EngineError, match=r"top_logprobs|prompt_logprobs_from|max_tokens"):
        SamplingParams(**parameters)


# Streams


@pytest.fixture(scope="module")
def alphabet() -> Engine:
    """Continues a with b, ... y with the two bytes of é, and these with z, which ends it."""
    tokenizer = TiktokenTokenizer({bytes([i]): i for i in range(256)}, GPT2_PATTERN, "<|end|>")
    size = tokenizer.vocab_size
    model = Decoder(ModelConfig(vocab_size=size, n_layers=1, n_heads=1, d_model=258))
    chain = [*range(ord("a"), ord("z")), *"é".encode(), ord("z"), size - 1]
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(size, 258))
        for token, following in itertools.pairwise(chain):
            model.head.weight[following, token] = 1.0
    return Engine(model, tokenizer, max_batch=4)


def run_streamed(engine: Engine, wanted: list[Request]):
    """Deltas by request and sample, step by step, and the completions."""
    for request in wanted:
        engine.add(request)
    deltas, done = defaultdict(list), {}
    while engine.has_work:
        ended = engine.step()
        for delta in engine.take_deltas():
            assert (delta.request_id, delta.index) not in done, "nothing comes after the end"
            deltas[delta.request_id, delta.index].append(delta)
        done.update(((each.request_id, each.index), each) for each in ended)
    return deltas, done


@pytest.mark.parametrize(
    ("parameters", "pieces"),
    [
        ({"max_tokens": 3}, ["b", "c", "d"]),
        ({"stop": ("de",)}, ["b", "c"]),
        # d may begin the stop string until e follows instead of x.
        ({"stop": ("dx",), "max_tokens": 4}, ["b", "c", "de"]),
        ({"stop": ("cdex",), "max_tokens": 4}, ["b", "cde"]),
        # é is two tokens: nothing comes with the first.
        ({"max_tokens": 27}, [*"bcdefghijklmnopqrstuvwxyéz"]),
        # Cut inside é at the end: the rest is the replacement character.
        ({"max_tokens": 25}, [*"bcdefghijklmnopqrstuvwxy", "�"]),
        ({"stop": ("b",)}, []),
    ],
)
def test_streamed_text_is_certain(alphabet, parameters, pieces):
    request = Request([ord("a")], None, SamplingParams(logprobs=True, **parameters), stream=True)
    deltas, done = run_streamed(alphabet, [request])
    mine, completion = deltas[request.id, 0], done[request.id, 0]
    assert [delta.text for delta in mine] == pieces
    assert "".join(pieces) == completion.text
    assert tuple(token for delta in mine for token in delta.tokens) == completion.tokens
    assert tuple(p for delta in mine for p in delta.logprobs) == completion.logprobs
    same = alphabet.generate([Request([ord("a")], None, request.sampling)])[0]
    assert (same.text, same.tokens) == (completion.text, completion.tokens)


def test_streams_of_many_samples_join_to_their_completions(model):
    ranks = {bytes([i]): i for i in range(256)}
    tokenizer = TiktokenTokenizer(ranks, GPT2_PATTERN, "<|end|>")
    wide = Decoder(ModelConfig(vocab_size=257, n_layers=1, n_heads=1, d_model=32, max_seq_len=64))
    engine = Engine(wide, tokenizer, max_batch=3)
    sampling = SamplingParams(
        max_tokens=30,
        temperature=5.0,
        stop=("a", "\x80b"),
        logprobs=True,
        top_logprobs=2,
        prompt_logprobs_from=0,
    )
    wanted = [Request([i, i + 1], None, sampling, n=2, stream=True) for i in range(20)]
    deltas, done = run_streamed(engine, wanted)
    assert len(done) == 40
    for key, completion in done.items():
        mine = deltas[key]
        assert "".join(delta.text for delta in mine) == completion.text
        assert tuple(t for delta in mine for t in delta.tokens) == completion.tokens
        assert tuple(p for delta in mine for p in delta.logprobs) == completion.logprobs
        assert tuple(p for delta in mine for p in delta.top_logprobs) == completion.top_logprobs
        assert mine[0].prompt == completion.prompt_logprobs
        assert all(delta.prompt is None for delta in mine[1:])


def test_who_does_not_stream_gives_no_deltas(model):
    engine = Engine(model)
    engine.generate([Request([1], 0.5, SamplingParams(max_tokens=4))])
    assert engine.take_deltas() == []


def test_ignore_eos(alphabet):
    sampling = SamplingParams(max_tokens=5, ignore_eos=True)
    (completion,) = alphabet.generate([Request([ord("y")], None, sampling)])
    assert len(completion.tokens) == 5
    assert completion.finish_reason == "length"
    assert alphabet.tokenizer.eos_id in completion.tokens


# Memory


def test_a_memory_budget_makes_requests_wait_and_loses_none(model):
    """Budgets down to a single row give the same completions; memory stays below them."""
    wanted = requests(12, most=40)
    expected = [alone(model, request)[0] for request in wanted]
    size = KVCache.bytes_per_token(model.config, torch.float32)
    most_active = {}
    for positions in (97, 150, 300, 97 * 12):
        budget = positions * size
        engine = Engine(model, max_batch=12, kv_cache_bytes=budget)
        arena = engine._arena
        assert arena._keys.nbytes + arena._values.nbytes <= budget
        for request in wanted:
            engine.add(request)
        done, most = {}, 0
        while engine.has_work:
            done.update((each.request_id, each) for each in engine.step())
            stats = engine.stats()
            assert stats.kv_tokens <= stats.kv_capacity <= positions
            most = max(most, engine.active)
        for request, completion in zip(wanted, expected, strict=True):
            assert_same(done[request.id], completion)
        most_active[positions] = most
    # Short rows share what one long row would take.
    assert most_active[97] >= 1
    assert 2 <= most_active[150] < most_active[300] < 12
    assert most_active[97 * 12] == 12


def test_rows_in_use_survive_a_new_layout(model):
    """A long request joins two short ones that are half done: rows become longer and fewer."""
    size = KVCache.bytes_per_token(model.config, torch.float32)
    engine = Engine(model, max_batch=12, kv_cache_bytes=3 * 97 * size, prefix_cache_bytes=0)
    prompts = random_prompts(4, 4, 4)
    lengths = [3, 20, 20, 3]
    short = [
        Request(prompt, 0.4, SamplingParams(max_tokens=length, logprobs=True))
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    long = Request(
        random_prompts(1, 60, 60, seed=3)[0], 0.8, SamplingParams(max_tokens=30, logprobs=True)
    )
    for request in (*short, long):
        engine.add(request)
    done, laid_out = {}, []
    while engine.has_work:
        done.update((each.request_id, each) for each in engine.step())
        laid_out.append(engine._arena.cache.rows)
    assert laid_out[0] == 11
    assert laid_out[-1] == 3
    assert engine.stats().finished == 5
    for request in (*short, long):
        assert_same(done[request.id], alone(model, request)[0])


def test_a_budget_too_small(model):
    size = KVCache.bytes_per_token(model.config, torch.float32)
    with pytest.raises(EngineError, match=f"kv_cache_bytes is {size}.* at least {2 * size}"):
        Engine(model, kv_cache_bytes=size)
    engine = Engine(model, kv_cache_bytes=41 * size)
    assert engine.max_seq_len == 40
    with pytest.raises(EngineError, match="make 41; the context is 40"):
        engine.add(Request([1] * 31, 0.5, SamplingParams(max_tokens=10)))
    assert len(engine.generate([Request([1] * 30, 0.5, SamplingParams(max_tokens=10))])) == 1


def test_cancelling_frees_the_row_within_a_step(model):
    engine = Engine(model, max_batch=1)
    engine.add(Request([1], 0.5, SamplingParams(max_tokens=90), id="first"))
    engine.add(Request([2], 0.5, SamplingParams(max_tokens=1), id="second"))
    engine.step()
    engine.cancel("first")
    assert [each.request_id for each in engine.step()] == ["first", "second"]


@pytest.mark.parametrize("options", [{"prefill_chunk": 0}, {"prefix_cache_bytes": -1}])
def test_refuses_bad_options(model, options):
    with pytest.raises(EngineError, match=next(iter(options))):
        Engine(model, **options)


# Reuse of prompts' beginnings


def test_equal_beginnings_are_computed_once(model):
    shared = random_prompts(1, 48, 48)[0]
    wanted = [
        Request([*shared, i], gates, SamplingParams(max_tokens=5, logprobs=True))
        for i in range(6)
        for gates in (0.2, [0.9, 0.1, 0.4], None)
    ]
    engine = Engine(model, max_batch=18)
    for request, completion in zip(wanted, engine.generate(wanted), strict=True):
        assert_same(completion, alone(model, request)[0])
    # Even of requests that came at once, one for each gate vector does the work.
    assert engine.stats().cached_tokens == 48 * 3 * 5
    assert engine.stats().prompt_tokens == 49 * 18


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_a_whole_prompt_in_the_cache(model, length):
    """Its last token is fed all the same: the first of the answer is drawn from it."""
    prompt = random_prompts(1, length, length)[0]
    engine = Engine(model)
    sampling = SamplingParams(max_tokens=4, logprobs=True)
    expected = alone(model, Request(prompt, 0.6, sampling))[0]
    for time in range(3):
        (completion,) = engine.generate([Request(prompt, 0.6, sampling)])
        assert_same(completion, expected)
        assert completion.cached_tokens == (0 if time == 0 else (length - 1) // BLOCK * BLOCK)


def test_other_gates_share_nothing(model):
    """Gates differ in the first layer, whose mixing changes what later layers keep."""
    prompt = random_prompts(1, 60, 60)[0]
    sampling = SamplingParams(max_tokens=5, logprobs=True)
    engine = Engine(model)
    for gates in ([0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]):
        request = Request(prompt, gates, sampling)
        (completion,) = engine.generate([request])
        assert_same(completion, alone(model, request)[0])
    assert engine.stats().cached_tokens == (60 - 1) // BLOCK * BLOCK


def test_the_prefix_cache_keeps_to_its_size(model):
    size = BLOCK * KVCache.bytes_per_token(model.config, torch.float32)
    engine = Engine(model, prefix_cache_bytes=4 * size)
    sampling = SamplingParams(max_tokens=2, logprobs=True)
    prompts = random_prompts(5, 60, 60)
    for prompt in prompts:
        engine.generate([Request(prompt, 0.5, sampling)])
        assert engine.stats().prefix_cache_bytes <= 4 * size
    before = engine.stats().cached_tokens
    assert before == 0
    engine.generate([Request(prompts[0], 0.5, sampling)])
    assert engine.stats().cached_tokens == 0, "the first has made room"
    engine.generate([Request(prompts[0], 0.5, sampling)])
    assert engine.stats().cached_tokens == 3 * BLOCK
    engine.clear_prefix_cache()
    assert engine.stats().prefix_cache_bytes == 0


def test_a_cancelled_reader_leaves_nobody_waiting(model):
    """Others wait for a beginning that is being computed; if that ends early they compute it."""
    prompt = random_prompts(1, 60, 60)[0]
    engine = Engine(model, max_batch=4, prefill_chunk=4)
    engine.add(Request([1], 0.5, SamplingParams(max_tokens=60)))
    engine.step()
    engine.add(Request(prompt, 0.5, SamplingParams(max_tokens=2), id="reader"))
    engine.add(Request(prompt, 0.5, SamplingParams(max_tokens=2), id="waiter"))
    engine.step()
    assert engine.waiting == 1
    engine.cancel("reader")
    done = {}
    while engine.has_work:
        done.update((each.request_id, each) for each in engine.step())
    expected = alone(model, Request(prompt, 0.5, SamplingParams(max_tokens=2)))[0]
    assert done["reader"].finish_reason == "cancelled"
    assert done["waiter"].tokens == expected.tokens


def test_names_of_blocks():
    prompt = list(range(40))
    names = block_names(prompt, torch.tensor([0.5, 0.25]))
    assert len(names) == 40 // BLOCK
    assert block_names([*prompt[:16], *range(50, 70)], torch.tensor([0.5, 0.25]))[0] == names[0]
    assert block_names([7, *prompt[1:]], torch.tensor([0.5, 0.25]))[1] != names[1]
    assert not set(block_names(prompt, torch.tensor([0.5, 0.26]))) & set(names)
    assert not set(block_names(prompt, None)) & set(names)


# Recorded steps


def test_steps_of_a_few_shapes_change_nothing(model):
    """What a recorded step works on: rows and positions rounded up, on whatever device."""
    wanted = requests(12, most=40)
    engine = Engine(model, max_batch=7)
    engine._decode_step.rounds_up = True
    for request, completion in zip(wanted, engine.generate(wanted), strict=True):
        assert_same(completion, alone(model, request)[0])


def test_recording_needs_a_gpu(model):
    with pytest.raises(EngineError, match="cuda_graphs needs a model on a GPU; it is on cpu"):
        Engine(model, cuda_graphs=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_recorded_steps_change_nothing(tiny_model, temperature):
    model = tiny_model(max_seq_len=96).to("cuda")
    wanted = requests(12, most=40, temperature=temperature, seed=2)
    expected = Engine(model, max_batch=5).generate(wanted)
    recorded = Engine(model, max_batch=5, cuda_graphs=True)
    for _ in range(2):
        for a, b in zip(recorded.generate(wanted), expected, strict=True):
            assert_same(a, b)
