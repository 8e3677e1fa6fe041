"""What `ask` does: the best passages first, then the rest, within the budget."""

from __future__ import annotations

import pytest
from recursion_cases import LONG, Reader, filler, open_session


def test_a_text_that_fits_is_asked_at_once():
    reader = Reader()
    session = open_session(f"{filler(10)} factA", reader)
    assert session.ask("which fact?").text == "factA"
    assert [step.verb for step in session.transcript.steps] == ["query", "ask"]
    assert len(reader.batches) == 1


@pytest.mark.parametrize("budget", [1, 40, 120, 400, 900])
def test_ask_never_spends_more_than_its_budget(budget):
    reader = Reader()
    session = open_session(LONG, reader, budget_tokens=budget)
    answer = session.ask("unrelated zebra question?")
    assert session.usage.total_tokens <= budget
    if answer.finish_reason == "budget":
        assert answer.text is None
        assert answer.detail
    else:
        assert answer.text.startswith("fact")


def test_ask_reads_the_best_passages_first_and_the_rest_only_if_they_do_not_tell():
    reader = Reader()
    session = open_session(LONG, reader)
    assert session.ask("w99 factA w0").text is not None
    assert [step.verb for step in session.transcript.steps] == ["search", "map", "reduce", "ask"]
    assert len(reader.batches[0]) == 2
    reader = Reader()
    missed = open_session(LONG.replace("factA", "w"), reader)
    answer = missed.ask("w40")  # its passages hold no fact
    assert answer.text == "factB factC"
    read, chunks = answer.read
    assert read == chunks > 8


def test_ask_says_how_far_the_budget_went():
    session = open_session(filler(600), Reader(), budget_tokens=500)
    answer = session.ask("w77?")
    assert (answer.text, answer.finish_reason) == (None, "budget")
    read, chunks = answer.read
    assert 0 < read < chunks
    assert f"{read} of {chunks}" in answer.detail
    assert open_session(filler(600), Reader()).ask("w77?").finish_reason == "not_found"


def test_ask_keeps_to_its_range():
    reader = Reader()
    session = open_session(LONG, reader)
    session.ask("w7", start=0, end=700)
    assert not any("factB" in prompt for batch in reader.batches for prompt in batch)
