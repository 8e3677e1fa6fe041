"""Bits per byte against a token-by-token computation and against what is known exactly."""

from __future__ import annotations

import math

import pytest
import torch

from evals.problems import load_problems
from evals.tasks import bits_per_byte, document
from evals.tasks.bits_per_byte import cut_windows, window_nats
from mhc_model.errors import DataError, GateError

TEXTS = [document(p) for p in load_problems("builtin:1", "test", 2)] + ["é" * 20, "", "a"]


def slow(model, tokenizer, texts, gates=None) -> float:
    """One token at a time: the whole prefix of its window through the model, last position only."""
    context, bits, size = model.config.max_seq_len, 0.0, 0
    for row, text in enumerate(texts):
        tokens = tokenizer.encode(text)
        size += len(text.encode())
        for i, token in enumerate(tokens):
            prefix = [tokenizer.bos_id, *tokens[i - i % context : i]]
            own = None if gates is None else gates[row : row + 1]
            with torch.no_grad():
                logits = model(torch.tensor([prefix]), own)[0, -1].double()
            bits -= logits.log_softmax(-1)[token].item() / math.log(2)
    return bits / size


@pytest.mark.parametrize("mhc", [False, True])
def test_equals_the_slow_computation(make_model, tokenizer, mhc):
    model = make_model(mhc, context=32)
    expected = slow(model, tokenizer, TEXTS)
    for batch_size in (1, 3, 64):
        assert bits_per_byte(model, tokenizer, TEXTS, batch_size=batch_size) == pytest.approx(
            expected, abs=1e-4
        )


def test_each_text_has_its_own_gates(make_model, tokenizer):
    model = make_model(context=32)
    rows = torch.rand(len(TEXTS), 4, generator=torch.Generator().manual_seed(1))
    value = bits_per_byte(model, tokenizer, TEXTS, rows, batch_size=3)
    assert value == pytest.approx(slow(model, tokenizer, TEXTS, rows), abs=1e-4)
    closed = bits_per_byte(model, tokenizer, TEXTS, 0)
    assert abs(closed - bits_per_byte(model, tokenizer, TEXTS, 1)) > 1e-3
    assert closed == bits_per_byte(model, tokenizer, TEXTS, torch.zeros(len(TEXTS), 4))


def test_uniform_model_needs_log2_of_the_vocabulary(make_model, tokenizer):
    model = make_model()
    torch.nn.init.zeros_(model.head.weight)
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    expected = math.log2(tokenizer.vocab_size) * tokens / size
    assert bits_per_byte(model, tokenizer, TEXTS) == pytest.approx(expected, rel=1e-6)


def test_mode_of_the_model_is_restored(make_model, tokenizer):
    model = make_model().train()
    bits_per_byte(model, tokenizer, ["a"])
    assert model.training


def test_bad_input(make_model, tokenizer):
    model = make_model()
    with pytest.raises(DataError, match="there is none"):
        bits_per_byte(model, tokenizer, ["", ""])
    with pytest.raises(DataError, match="batch_size is 0"):
        bits_per_byte(model, tokenizer, ["a"], batch_size=0)
    with pytest.raises(GateError, match=r"allowed: 1 number .*\[0, 1\]"):
        bits_per_byte(model, tokenizer, ["a"], 1.1)
    with pytest.raises(GateError, match=r"expected \(1, 4\)"):
        bits_per_byte(model, tokenizer, ["a"], torch.ones(2, 4))
    with pytest.raises(GateError, match="plain"):
        bits_per_byte(make_model(mhc=False), tokenizer, ["a"], 1.0)


def test_windows_can_be_shorter_than_the_context(make_model, tokenizer):
    model, text = make_model(context=32), TEXTS[:1]
    windows = cut_windows(model, tokenizer, text, 8)
    assert max(len(window.tokens) for window in windows) == 8
    assert sum(window.bytes for window in windows) == len(text[0].encode())
    short = bits_per_byte(model, tokenizer, text, context=8)
    nats = sum(window_nats(model, tokenizer, windows))
    assert short == pytest.approx(nats / math.log(2) / len(text[0].encode()))
    assert short != bits_per_byte(model, tokenizer, text)
