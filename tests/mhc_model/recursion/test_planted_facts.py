"""A hundred facts planted in long texts are found, by their meaning and within a budget."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from benchmarks.planted_facts import TEMPLATES, book_texts, draw, generated_text, plant
from benchmarks.recursion import BUDGET_TOKENS, ask_all, planted_texts, random_reader, summarise
from mhc_model.recursion import SessionSettings, TextIndex, index_for
from mhc_model.recursion.search.words import query_terms
from mhc_model.tokenizer import Tokenizer

SETTINGS = SessionSettings.model_validate({"budget_tokens": BUDGET_TOKENS, "max_tokens": 4})


def test_questions_are_no_copies_of_their_facts():
    rng = random.Random(0)
    for template in range(len(TEMPLATES)):
        fact, question, answer = draw(template, rng)
        assert answer in fact
        asked, told = set(query_terms(question)), set(query_terms(fact))
        assert answer not in question
        # At least a word of the question is not in the fact, and most of the fact not in it.
        assert asked - told, question
        assert len(told - asked) >= 2, question


def test_facts_lie_where_they_should():
    text = generated_text(20_000, seed=1)
    index = TextIndex(text)
    planted, facts = plant(text, range(10), 3, *index.sizes)
    cut_text = TextIndex(planted)
    assert [fact.at_boundary for fact in facts].count(True) == 3
    for fact in facts:
        assert planted.count(fact.fact) == 1
        at = planted.index(fact.fact)
        ends = cut_text.spans[:, 1]
        across = bool(((at < ends) & (ends < at + len(fact.fact))).any())
        assert across or not fact.at_boundary
    # Distractors: the same sentences about others.
    assert planted.count("had earned a living as a glassblower") == 4


def found_of_100(raw: list[str], tokenizer: Tokenizer) -> dict:
    reader = random_reader(tokenizer)
    sizes = index_for(raw[0], reader, SETTINGS).sizes
    report = summarise(list(ask_all(planted_texts(raw, sizes, 0), reader, SETTINGS)))
    assert report["placements"] == 100
    assert report["tokens_most"] <= BUDGET_TOKENS
    return report


def test_a_hundred_facts_in_generated_texts():
    raw = [generated_text(15_000, seed) for seed in range(10)]
    report = found_of_100(raw, Tokenizer.train(raw[:1], 2000))
    assert report["found"] >= 95, report["missed"]
    assert report["found_at_boundary"] >= 27, report["missed"]


@pytest.fixture(scope="module")
def shared_data() -> Path:
    default = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
    directory = Path(os.environ.get("MHC_SHARED_DATA", default)).resolve()
    if not (directory / "text" / "books").is_dir():
        pytest.skip("no shared data: set MHC_SHARED_DATA to a directory with text/books/")
    return directory


@pytest.mark.slow
def test_a_hundred_facts_in_200_000_tokens_of_novels(shared_data):
    tokenizer = Tokenizer.from_tiktoken_file(shared_data / "gpt2-bpe" / "gpt2.tiktoken")
    raw = book_texts(shared_data / "text" / "books", tokenizer, 200_000, 10)
    assert all(len(text) > 600_000 for text in raw)
    started = time.process_time()
    TextIndex(raw[0])
    assert time.process_time() - started < 10
    report = found_of_100(raw, tokenizer)
    assert report["found"] >= 95, report["missed"]
