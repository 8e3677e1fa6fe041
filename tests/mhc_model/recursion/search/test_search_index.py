"""Search against what can be worked out by hand."""

from __future__ import annotations

import math
import random
import tracemalloc

import numpy as np
import pytest
import torch

from benchmarks.planted_facts import generated_text
from mhc_model.errors import SessionError
from mhc_model.recursion import Embedder, TextIndex
from mhc_model.recursion.search.bm25 import BM25, K1, B


def test_bm25_is_the_formula():
    # Two spans of 3 and 1 words over terms 0 1 0 | 1.
    ids = np.array([0, 1, 0, 1], dtype=np.int32)
    places = np.array([0, 2, 4, 6])
    scores = BM25.of(ids, places, np.array([[0, 6], [6, 8]]), 2).score([0, 1])
    rare, common = math.log1p((2 - 1 + 0.5) / 1.5), math.log1p((2 - 2 + 0.5) / 2.5)

    def weight(count: int, length: int) -> float:
        return count * (K1 + 1) / (count + K1 * (1 - B + B * length / 2))

    assert scores[0] == pytest.approx(rare * weight(2, 3) + common * weight(1, 3), rel=1e-6)
    assert scores[1] == pytest.approx(common * weight(1, 1), rel=1e-6)


def test_search_finds_a_sentence_by_other_forms_of_its_words():
    text = generated_text(3000, seed=2)
    at = text.index(" ", len(text) // 3) + 1
    fact = "Rosamund hid the brass keys under the flagstones. "
    index = TextIndex(text[:at] + fact + text[at:], 400, 100)
    (best, *_) = index.search("Where does Rosamund hide the brass key?", 3)
    assert fact.strip() in best.text
    assert index.text.text[best.start : best.end] == best.text


def test_words_that_stand_together_rank_above_the_same_words_apart():
    filler = generated_text(40, seed=3)
    apart = f"The heron {filler} was seen {filler} beside an anvil."
    together = f"{filler} The heron sat beside an anvil. {filler}"
    index = TextIndex(f"{apart}\n{together}\n", len(apart) + 1, 0)
    assert "heron sat beside" in index.search("heron anvil", 1)[0].text


def test_search_keeps_to_its_range():
    text = "The amber heron. " * 3 + "filler words here. " * 60 + "The amber heron again. "
    index = TextIndex(text, 100, 20)
    late = index.search("amber heron", 5, start=500)
    assert late
    assert all(hit.end > 500 for hit in late)
    assert index.search("amber heron", 5, start=120, end=400) == []


def test_nothing_is_found_where_no_word_occurs():
    assert TextIndex("Plain words only.").search("xylophone") == []


def vectors(texts) -> torch.Tensor:
    """A space of two directions: doctors and physicians one way, everything else the other."""
    medical = [any(word in text for word in ("doctor", "physician")) for text in texts]
    noise = torch.tensor([[0.01 * (len(text) % 7), 0.0] for text in texts])
    return noise + torch.tensor([[0.0, 1.0] if kind else [1.0, 0.0] for kind in medical])


@pytest.mark.parametrize("unit", ["words", "texts"])
def test_embeddings_find_what_shares_no_word(unit):
    text = "A carpenter came by. " * 30 + "The physician came. " + "A carpenter left. " * 30
    index = TextIndex(text, 120, 30, Embedder(vectors, unit))
    assert "physician" in index.search("doctor", 1, "embedding")[0].text
    assert "physician" in index.search("doctor", 1, "hybrid")[0].text
    assert index.search("doctor", 1, "lexical") == []


def test_embeddings_that_know_nothing_do_not_drown_the_words():
    text = generated_text(4000, seed=4)
    at = text.index(" ", len(text) // 2) + 1
    text = f"{text[:at]}The parrot of Isidore spoke Portuguese. {text[at:]}"

    def noise(texts):
        rows = [torch.randn(16, generator=torch.Generator().manual_seed(len(t))) for t in texts]
        return torch.stack(rows)

    index = TextIndex(text, 400, 100, Embedder(noise, "texts"))
    hits = index.search("Which language did Isidore's parrot speak?", 6)
    assert any("Portuguese" in hit.text for hit in hits)


@pytest.mark.parametrize(
    ("arguments", "words_of_error"),
    [
        ({"query": " "}, "not empty"),
        ({"query": "x" * 2001}, "at most 2000"),
        ({"query": 7}, "must be a text"),
        ({"query": "x", "k": 0}, "from 1 to 100"),
        ({"query": "x", "k": 101}, "from 1 to 100"),
        ({"query": "x", "k": True}, "from 1 to 100"),
        ({"query": "x", "mode": "fuzzy"}, "hybrid"),
        ({"query": "x", "mode": "embedding"}, "no embeddings"),
    ],
)
def test_search_names_what_is_wrong(arguments, words_of_error):
    with pytest.raises(SessionError, match=words_of_error):
        TextIndex("Some text.").search(**arguments)


@pytest.mark.parametrize("text", ["", " \n ", "?!... ---", "x" * 50_000, "\x00\ud800 odd"])
def test_odd_texts_are_indexed_or_refused(text):
    if not text.strip():
        with pytest.raises(SessionError, match="empty"):
            TextIndex(text)
    else:
        assert TextIndex(text).search("x") is not None


def test_memory_grows_with_the_passages_and_no_faster():
    def peak(words_of_text: int) -> float:
        text = generated_text(words_of_text, seed=5)
        TextIndex(text)  # fills the cache of stems, which is no part of the index
        tracemalloc.start()
        index = TextIndex(text)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return held / len(index)

    assert peak(40_000) < 1.2 * peak(20_000)


def test_results_do_not_depend_on_chance():
    text = generated_text(2000, seed=6)
    query = " ".join(random.Random(0).sample(text.split(), 5))
    assert TextIndex(text).search(query) == TextIndex(text).search(query)
