"""Ending a session, from within a call and from another thread."""

from __future__ import annotations

import threading

import pytest
from recursion_cases import LONG, Reader, open_session

from mhc_model.errors import CancelledError
from mhc_model.recursion import CancelToken


def test_cancelling_ends_a_call_under_way_and_refuses_the_next():
    reader, cancel = Reader(), CancelToken()
    session = open_session(LONG, reader, cancel=cancel)
    reader.before = lambda token: token.cancel()
    answer = session.ask("which?")
    assert (answer.text, answer.finish_reason) == (None, "cancelled")
    assert reader.batches == []
    with pytest.raises(CancelledError):
        session.peek(0, 5)


def test_closing_from_another_thread_ends_the_session():
    reader = Reader()
    session = open_session(LONG, reader)
    reached, closed = threading.Event(), threading.Event()

    def hold(token):
        reached.set()
        closed.wait(10)

    reader.before = hold

    def close():
        reached.wait(10)
        session.close()
        closed.set()

    thread = threading.Thread(target=close)
    thread.start()
    assert session.ask("which?").finish_reason == "cancelled"
    thread.join()
