"""A sample under way: its text as it becomes certain, where it ends, what it hands out."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from engine_cases import make_row, spelling_model
from hypothesis import example, given
from hypothesis import strategies as st

from mhc_model import Decoder, Engine, ModelConfig, Request, SamplingParams
from mhc_model.engine import PromptLogprobs
from mhc_model.engine.row import GeneratedText
from mhc_model.tokenizer import GPT2_PATTERN, TiktokenTokenizer

# The bytes of tokens

PIECES = [b"a", b"b", b"ab", b"ba", b"aab", b"", *(bytes([byte]) for byte in "é🙂".encode())]
STOPS = ["ab", "ba", "aab", "bb", "é", "bé", "🙂", "a🙂"]


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.lists(st.sampled_from(STOPS), max_size=3))
@example([b"aab"], ["ab", "aab"])
@example([b"aab"], ["aab", "ab"])
def test_text_comes_once_it_is_certain_and_is_never_taken_back(tokens, stops):
    text = GeneratedText(stops)
    said, seen, stopped = [], b"", False
    for token in tokens:
        stopped, seen = text.push(token), seen + token
        assert stopped == any(stop.encode() in seen for stop in stops)
        if stopped:
            break
        piece, whole = text.take(final=False)
        said.append(piece)
        assert "".join(said).startswith(b"".join(tokens[:whole]).decode(errors="replace"))
    said.append(text.take(final=True)[0])
    starts = [at for stop in stops if (at := seen.find(stop.encode())) >= 0]
    assert text.cut == min(starts, default=None)
    expected = seen[: text.cut].decode(errors="replace")
    assert "".join(said) == text.text() == expected


def test_what_may_become_a_stop_string_or_a_character_is_held_back():
    text = GeneratedText(["dx", "cdey"])
    taken = []
    for letter in "bcde":
        text.push(letter.encode())
        taken.append(text.take(final=False))
    assert taken == [("b", 1), ("", 1), ("", 1), ("", 1)]
    text.push(b"f")
    assert text.take(final=False) == ("cdef", 5)
    text.push("é".encode()[:1])
    assert text.take(final=False) == ("", 5)
    assert text.take(final=True) == ("\ufffd", 6)


# A row by itself


def test_what_a_row_needs_and_fills():
    row = make_row(range(5), max_tokens=7)
    assert (row.need, row.length, row.prefilling) == (12, 0, True)
    row.filled = 3
    assert (row.length, row.prefilling) == (3, True)
    row.filled = 5
    row.append(9, now=1.0)
    # The newest token is drawn, and not yet in the cache.
    assert (row.length, row.prefilling) == (5, False)
    row.append(8, now=2.0)
    assert (row.length, row.first_token) == (6, 1.0)


def test_samples_of_neighbouring_seeds_share_none():
    seeds = [make_row(index=i, seed=s).seed for s in (0, 1, 2, 2**63 - 1) for i in range(128)]
    assert len(set(seeds)) == 4 * 128
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert make_row(index=0, seed=2**63 - 1).seed == 2**63 - 1


@pytest.mark.parametrize(
    ("sampling", "tokens", "reason", "kept"),
    [
        ({"max_tokens": 3}, "bc", None, "bc"),
        ({"max_tokens": 3}, "bcd", "length", "bcd"),
        ({"max_tokens": 3}, "bc!", "stop", "bc"),  # the end counts before the length
        ({"max_tokens": 9}, "!", "stop", ""),
        ({"max_tokens": 9, "stop": ("cd",)}, "bcd", "stop", "b"),
        ({"max_tokens": 9, "stop": ("cd",)}, "bc", None, "bc"),
        ({"max_tokens": 0, "prompt_logprobs_from": 0}, "", "length", ""),
        ({"max_tokens": 9}, "", None, ""),
    ],
)
def test_how_a_row_ends(byte_tokenizer, sampling, tokens, reason, kept):
    row = make_row([1, 2], stop_ids=[ord("!")], logprobs=True, top_logprobs=1, **sampling)
    found = row.finish_reason(byte_tokenizer) if not tokens else None
    for position, token in enumerate(tokens.encode()):
        row.append(token, now=row.added + 1.0 + position)
        row.logprobs.append(-1.0 - position)
        row.top_logprobs.append(((token, -0.5),))
        found = row.finish_reason(byte_tokenizer)
        assert found is None or position == len(tokens) - 1
    assert found == reason
    row.started = row.added + 0.5
    completion = row.complete(reason or "cancelled", byte_tokenizer)
    assert completion.tokens == tuple(kept.encode())
    assert completion.text == kept
    assert completion.logprobs == tuple(-1.0 - i for i in range(len(kept)))
    assert completion.top_logprobs == tuple(((token, -0.5),) for token in kept.encode())
    assert completion.timings.queued_s == pytest.approx(0.5)
    if tokens:
        assert completion.timings.first_token_s == pytest.approx(1.0)


def test_a_completion_holds_what_was_asked_for():
    gates = torch.tensor([0.25, 1.0])
    quiet = make_row([1, 2], index=3, gates=gates, id="quiet", max_tokens=2)
    scored = make_row([1, 2], prompt_logprobs_from=0, max_tokens=2)
    for row in (quiet, scored):
        row.cached = 1
        row.append(7, now=0.0)
        row.logprobs.append(-1.0)
        row.prompt_logprobs.append(-2.0)
    done = quiet.complete("length", None)
    assert (done.request_id, done.index, done.tokens, done.text) == ("quiet", 3, (7,), None)
    assert (done.gates, done.cached_tokens) == ((0.25, 1.0), 1)
    assert (done.logprobs, done.top_logprobs, done.prompt_logprobs) == (None, None, None)
    # Nothing precedes the first token of a prompt.
    assert scored.complete("length", None).prompt_logprobs == PromptLogprobs((None, -2.0), ())
    assert scored.complete("length", None).gates is None


def test_deltas_hold_what_is_new_and_the_prompts_scores_once(byte_tokenizer):
    row = make_row([1], stream=True, max_tokens=9, stop=("xy",), prompt_logprobs_from=0)
    first = row.take_delta(final=False)
    assert (first.text, first.tokens, first.logprobs) == ("", (), None)
    assert first.prompt == PromptLogprobs((None,), ())
    assert row.take_delta(final=False) is None
    deltas = []
    for token in b"axbx":
        row.append(token, now=0.0)
        row.finish_reason(byte_tokenizer)
        deltas.append(row.take_delta(final=False))
    assert [delta and (delta.text, bytes(delta.tokens)) for delta in deltas] == [
        ("a", b"a"),
        None,  # x may begin the stop string
        ("xb", b"xb"),
        None,
    ]
    last = row.take_delta(final=True)
    assert (last.text, bytes(last.tokens), last.prompt) == ("x", b"x", None)


# Through the engine: how a completion ends


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


def test_stop_inside_a_token_keeps_whole_tokens_only():
    """Tokens of several letters: the text is cut inside one, the tokens before it."""
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256, b"cd": 257}
    tokenizer = TiktokenTokenizer(ranks, GPT2_PATTERN, "<|end|>")
    engine = Engine(spelling_model(259, [(ord("x"), 256), (256, 257), (257, 256)]), tokenizer)
    sampling = SamplingParams(stop=("da",), max_tokens=9, logprobs=True)
    (completion,) = engine.generate([Request([ord("x")], None, sampling)])
    assert completion.text == "abc"
    assert completion.tokens == (256,)
    assert len(completion.logprobs) == 1


def test_ignore_eos(alphabet):
    sampling = SamplingParams(max_tokens=5, ignore_eos=True)
    (completion,) = alphabet.generate([Request([ord("y")], None, sampling)])
    assert len(completion.tokens) == 5
    assert completion.finish_reason == "length"
    assert alphabet.tokenizer.eos_id in completion.tokens


# Through the engine: streams


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


def test_streams_of_many_samples_join_to_their_completions(byte_tokenizer):
    wide = Decoder(ModelConfig(vocab_size=257, n_layers=1, n_heads=1, d_model=32, max_seq_len=64))
    engine = Engine(wide, byte_tokenizer, max_batch=3)
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
