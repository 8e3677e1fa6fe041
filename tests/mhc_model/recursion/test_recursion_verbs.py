"""The verbs of a session: recursion, depth, limits, and what they refuse."""

from __future__ import annotations

import pytest
from recursion_cases import LONG, SIX_WORDS, Reader, open_session

from mhc_model.errors import SessionError


def test_a_source_beyond_the_context_is_cut_asked_in_one_batch_and_reduced():
    reader = Reader()
    session = open_session(LONG, reader)
    assert session.query("which?", (0, len(LONG))) == "factA factB factC"
    # One batch for all chunks; another for the three partial answers.
    assert len(reader.batches) == 2
    assert len(reader.batches[0]) > 8
    assert reader.batches[1] == ["+- factA\n- factB\n- factC|which?|"]
    reduce, query = session.transcript.steps
    assert (reduce.verb, reduce.depth, query.verb, query.depth) == ("reduce", 1, "query", 0)


def test_map_reads_sources_of_all_sizes_in_one_batch():
    reader = Reader()
    session = open_session(LONG, reader)
    answers = session.map("which?", [(0, len(LONG)), "factX here", "nothing here", (0, 20)])
    assert answers == ["factA factB factC", "factX", "not found", "not found"]
    assert len(reader.batches) == 2


def test_partial_answers_that_do_not_fit_are_reduced_in_levels():
    reader = Reader(context=24)
    session = open_session(LONG, reader)
    session.reduce("which?", SIX_WORDS)
    # 18 tokens of prompt hold two answers of six words: 8 -> 4 -> 2 -> 1, a batch a level.
    assert [len(batch) for batch in reader.batches] == [4, 2, 1]
    assert [step.depth for step in session.transcript.steps] == [2, 1, 0]


def test_reduce_calls_nothing_where_one_answer_is_left():
    reader = Reader()
    session = open_session(LONG, reader)
    assert session.reduce("q", ["not found", "Paris.", "paris", ""]) == "Paris."
    assert session.reduce("q", ["not found"]) == "not found"
    assert reader.batches == []


def test_a_reduction_that_finds_nothing_does_not_lose_what_was_found():
    session = open_session(LONG, Reader())
    assert session.reduce("q", ["the red one", "the blue one"]) == "the red one"


def test_depth_is_bounded():
    session = open_session(LONG, Reader(), max_depth=0)
    with pytest.raises(SessionError, match="max_depth 0"):
        session.query("which?", (0, len(LONG)))
    with pytest.raises(SessionError, match="max_depth 1"):
        open_session(LONG, Reader(24), max_depth=1).reduce("q", SIX_WORDS)


def test_limits_of_a_session():
    session = open_session(LONG, Reader(), max_peek=50, max_steps=3, max_sources=4)
    with pytest.raises(SessionError, match="at most 50"):
        session.peek(0, 51)
    with pytest.raises(SessionError, match="more than 4 chunks"):
        session.map("q", ["a"] * 5)
    session.search("w7")
    with pytest.raises(SessionError, match="called 3 verbs"):
        session.search("w7")


@pytest.mark.parametrize(
    ("verb", "arguments", "reason"),
    [
        ("query", ("", "text"), "question"),
        ("query", ("q" * 2001, "text"), "question"),
        ("query", (7, "text"), "question"),
        ("query", ("q", " "), "empty"),
        ("query", ("q", 7), "no source"),
        ("query", ("q", [1, 2, 3]), "no source"),
        ("query", ("q", [5, 4]), "after start"),
        ("map", ("q", "abc"), "a list"),
        ("map", ("q", None), "a list"),
        ("reduce", ("q", "abc"), "list of texts"),
        ("reduce", ("q", [1]), "list of texts"),
        ("reduce", ("q", None), "list of texts"),
        ("ask", (None,), "question"),
        ("ask", ("q", -1), "start is -1"),
        ("search", ("q", 5, "hybrid", 0, -3), "after start"),
        ("chunks", (10**9,), "start is"),
    ],
)
def test_verbs_name_what_is_wrong(verb, arguments, reason):
    with pytest.raises(SessionError, match=reason):
        getattr(open_session(LONG, Reader()), verb)(*arguments)
