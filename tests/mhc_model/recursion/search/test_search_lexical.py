"""Reading a long text: counted right, bounded, in another process, and ended when nobody waits."""

from __future__ import annotations

import os
import random
import resource
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mhc_model.errors import CancelledError, SessionError
from mhc_model.recursion import CancelToken, Embedder, SessionSettings, TextIndex, index_for
from mhc_model.recursion.search import bm25, lexical
from mhc_model.recursion.search.lexical import MAX_WINDOWS, Lexical, pack, read_here, unpack
from mhc_model.recursion.search.words import stem, words

FAMILY = "👨‍👩‍"  # no word in it, and many tokens


def prose(count: int, seed: int = 0) -> str:
    generator = random.Random(seed)
    vocabulary = ["".join(generator.choices("abcdefgh", k=6)) for _ in range(500)]
    return " ".join(generator.choices(vocabulary, k=count)) + ". 北京\nIt's naïve"


def same(one: Lexical, other: Lexical) -> None:
    assert one.terms == other.terms
    assert one.surface == other.surface
    for name in ("spans", "window_spans"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    for name in ("passages", "windows"):
        mine, theirs = getattr(one, name), getattr(other, name)
        for part in ("holders", "weights", "offsets", "idf", "count"):
            assert np.array_equal(getattr(mine, part), getattr(theirs, part)), (name, part)


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_counts_are_those_of_each_span_by_itself(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bm25, "_BLOCK", block)
    text = prose(400)
    found = read_here(text, 120, 30)
    for spans, counts in ((found.spans, found.passages), (found.window_spans, found.windows)):
        expected = [
            Counter(found.terms[stem(word)] for word, at in words(text) if start <= at < end)
            for start, end in spans
        ]
        lengths = [sum(each.values()) for each in expected]
        mean = sum(lengths) / len(lengths)
        for term in (0, 3, len(found.terms) - 1):
            scores = counts.score([term])
            holders = [number for number, each in enumerate(expected) if each[term]]
            assert np.flatnonzero(scores).tolist() == holders
            idf = np.log1p((len(spans) - len(holders) + 0.5) / (len(holders) + 0.5))
            for number in holders:
                n = expected[number][term]
                norm = bm25.K1 * (1 - bm25.B + bm25.B * lengths[number] / mean)
                weight = idf * n * (bm25.K1 + 1) / (n + norm)
                assert scores[number] == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("text", [prose(300), FAMILY * 50, "a", "lone \ud800 surrogate"])
def test_what_is_packed_is_unpacked(text: str) -> None:
    found = read_here(text, 40, 10)
    same(found, unpack(pack(found)))


def test_another_process_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = prose(3000) + FAMILY * 100 + "\ud800"
    expected = read_here(text, 200, 50)
    monkeypatch.setattr(lexical, "ELSEWHERE", 10)
    monkeypatch.setattr(lexical, "read_here", None)  # not in this one
    same(lexical.read_text(text, 200, 50), expected)


class Model:
    """A language model of a small context, whose tokens are bytes."""

    context = 64
    embedder = Embedder(lambda texts: torch.ones(len(texts), 4), "words")

    def count_tokens(self, text: str) -> int:
        return len(text.encode("utf-8", "replace"))


@pytest.mark.parametrize("text", [FAMILY * 270_000, "a " * 500_000, "\n" * 500_000 + "x" * 500_000])
def test_the_index_of_a_long_text_at_a_small_context_is_bounded(text: str) -> None:
    settings = SessionSettings.model_validate({"max_tokens": 8})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = index_for(text, Model(), settings)
    assert len(index._window_spans) <= 2 * MAX_WINDOWS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB
    assert len(index.search("x", k=3)) <= 3
    with pytest.raises(SessionError, match="at most 65536 windows"):
        TextIndex(text, 12, 3)


def test_a_text_without_words_has_no_embeddings() -> None:
    index = TextIndex(FAMILY * 100, 40, 10, Model.embedder)
    assert not index.has_embeddings
    assert index.search("anything") == []


@pytest.mark.parametrize("size", range(2, 40))
def test_every_size_of_passage_has_windows(size: int) -> None:
    found = read_here("some words in a row, " * 5, size, 0)
    assert (found.window_spans[:, 1] > found.window_spans[:, 0]).all()
    assert found.window_spans[-1, 1] == 105


def children() -> set[str]:
    paths = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {child for path in paths for child in path.read_text().split()}


def test_reading_ends_when_the_session_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, before = CancelToken(), children()
    started = threading.Event()
    real = lexical.subprocess.Popen

    def popen(*arguments: object, **options: object) -> object:
        process = real(*arguments, **options)
        started.set()
        return process

    monkeypatch.setattr(lexical.subprocess, "Popen", popen)
    threading.Thread(target=lambda: (started.wait(), cancel.cancel()), daemon=True).start()
    settings = SessionSettings.model_validate({"max_tokens": 8})
    with pytest.raises(CancelledError):
        index_for(prose(300_000), Model(), settings, cancel=cancel)
    assert children() <= before


def test_embedding_ends_when_the_session_is_cancelled() -> None:
    cancel = CancelToken()
    calls = []

    def embed(texts: list[str]) -> torch.Tensor:
        calls.append(len(texts))
        if len(calls) == 2:
            cancel.cancel()
        return torch.ones(len(texts), 4)

    text = " ".join(f"w{i}" for i in range(10_000))
    with pytest.raises(CancelledError):
        TextIndex(text, 960, 240, Embedder(embed, "words"), cancel.check)
    assert len(calls) == 2


def test_a_session_that_was_cancelled_reads_nothing() -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        TextIndex("a few words", 960, 240, None, cancel.check)
