"""What is said while something takes long."""

import io
import sys
import time
from contextlib import contextmanager, redirect_stdout

import pytest

from mhc_model.running import Heartbeat, counted, doing, progress


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.2)


def until(said, text):
    deadline = time.monotonic() + 20
    while text not in said():
        assert time.monotonic() < deadline, said()
        time.sleep(0.01)


@contextmanager
def listening():
    stream = io.StringIO()
    with redirect_stdout(stream):
        yield stream.getvalue


def test_what_is_done_is_said_at_once_and_again():
    with listening() as said:
        with doing("reading"):
            assert said() == "reading ...\n"
            until(said, "reading: 0 s\nreading: ")
        lines = said().count("\n")
        time.sleep(0.5)
        assert said().count("\n") == lines


def test_who_speaks_for_himself_is_not_interrupted():
    with listening() as said:
        with Heartbeat("waiting") as heartbeat:
            for number in range(30):
                print(f"step {number}")
                time.sleep(0.02)
            assert "waiting" not in said()
            heartbeat.now("saving")
            until(said, "saving: ")
        assert "waiting" not in said()


def test_nothing_is_left_of_it_after_an_error():
    with listening():
        before = sys.stdout
        with pytest.raises(ValueError, match="x"), doing("reading"):
            raise ValueError("x")
        assert sys.stdout is before


def test_a_log_gets_a_line_now_and_then():
    with listening() as said:
        with counted("gsm8k", 100, 40) as add:
            for _ in range(10):
                add()
            until(said, "gsm8k: 50 of 100, ")
        assert said().startswith("gsm8k: 40 of 100\n")
        assert "gsm8k: 50 of 100 in 0:00:0" in said().splitlines()[-1]


def test_a_terminal_gets_a_bar(monkeypatch):
    with listening() as said:
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        with counted("gsm8k", 2) as add:
            add()
            add()
        assert "gsm8k: 100%" in terminal.getvalue()
        assert said() == ""
