"""Calls of the model: checked against the budget and the context before they are made."""

from __future__ import annotations

import pytest
from recursion_cases import LONG, Reader, filler, open_session, settings

from mhc_model.errors import BudgetError, SessionError
from mhc_model.recursion import CancelToken
from mhc_model.recursion.calls import Calls
from mhc_model.recursion.search import LongText


def test_the_budget_is_checked_before_the_call():
    reader = Reader()
    session = open_session(LONG, reader, budget_tokens=30)
    session.query("which?", "some factA text")  # 3 tokens of prompt and 1 of answer
    assert session.usage.total_tokens == 4
    with pytest.raises(BudgetError, match=r"take up to \d+ tokens; 26 of the budget of 30"):
        session.map("which?", ["a b c"] * 6)
    assert len(reader.batches) == 1
    assert session.usage.total_tokens == 4
    assert "budget" in session.transcript.steps[-1].error


def test_a_context_without_room_says_so():
    with pytest.raises(SessionError, match="no room for text"):
        open_session(LONG, Reader(context=12)).query("which one is it?", (0, len(LONG)))


@pytest.mark.parametrize("context", [45, 60, 500])
@pytest.mark.parametrize("span", [(0, 2000), (137, 1410)])
def test_chunks_fit_with_the_question_and_leave_nothing_out(context, span):
    calls = Calls(Reader(context), settings(chunk_tokens=100), None, CancelToken())
    text = LongText(filler(700))
    chunks = calls.chunk("which one?", text, *span)
    assert (chunks[0].start, chunks[-1].end) == span
    for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
        assert chunk.text == text.text[chunk.start : chunk.end]
        assert calls.fits(calls.query_prompt("which one?", chunk.text))
        assert calls.model.count_tokens(chunk.text) <= 100
        assert following is None or chunk.start < following.start <= chunk.end


def test_what_was_spent_is_what_the_model_counted():
    reader = Reader()
    calls = Calls(reader, settings(budget_tokens=40), None, CancelToken())
    assert calls.cost(["a b c", "d"]) == 3 + 1 + 2 * 6
    assert calls.complete(["factA b c|q|", "d|q|"]) == ["factA", "not found"]
    usage = calls.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.left) == (4, 3, 33)
    with pytest.raises(BudgetError, match="36 tokens; 33 of the budget of 40 are left"):
        calls.complete(["a b c"] * 4)
    calls.complete(["a b c"] * 3)  # at most 27
    assert len(reader.batches) == 2
