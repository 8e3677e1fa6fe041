"""What a command is doing, for a person who waits or a log that is read later.

Something is said at once, and then at least every `EVERY_S` seconds, on standard output. In a
terminal a bar shows what is counted.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TextIO, cast

EVERY_S = 10.0


def say(line: str) -> None:
    """Prints a line, whole and now."""
    print(line, flush=True)


class Heartbeat:
    """Says what is being done whenever standard output was silent for `EVERY_S`.

    A context manager. Within, what this process prints is noticed, of whatever thread.
    """

    def __init__(self, what: str | Callable[[], str], every_s: float | None = None) -> None:
        """Says nothing yet.

        Args:
            what: is being done, in words, or what gives the words.
            every_s: seconds between lines; None is `EVERY_S`.
        """
        self._every_s = EVERY_S if every_s is None else every_s
        self._changed = threading.Condition()
        self._what, self._since, self._next = what, 0.0, 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def now(self, what: str | Callable[[], str]) -> None:
        """From here on something else is being done."""
        with self._changed:
            self._what, self._since = what, time.monotonic()

    def heard(self) -> None:
        """Something else was said: the next line is due `EVERY_S` from now."""
        self._next = time.monotonic() + self._every_s

    def __enter__(self) -> Heartbeat:
        self._since = time.monotonic()
        self.heard()
        self._stream = sys.stdout
        sys.stdout = cast(TextIO, _Heard(self._stream, self.heard))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        sys.stdout = self._stream

    def _beat(self) -> None:
        with self._changed:
            while not self._ended:
                left = self._next - time.monotonic()
                if left > 0.0:
                    self._changed.wait(left)
                    continue
                what = self._what if isinstance(self._what, str) else self._what()
                say(f"{what}: {time.monotonic() - self._since:.0f} s")
                self._next = time.monotonic() + self._every_s


class _Heard:
    """A stream that tells when something is written to it."""

    def __init__(self, stream: TextIO, tell: Callable[[], None]) -> None:
        self._stream, self._tell = stream, tell

    def write(self, text: str) -> int:
        self._tell()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def doing(what: str) -> Iterator[Heartbeat]:
    """Says what is done now, and again now and then while it takes.

    Args:
        what: in words, such as "reading the problems".
    """
    say(f"{what} ...")
    with Heartbeat(what) as heartbeat:
        yield heartbeat


@contextmanager
def counted(what: str, total: int, done: int = 0) -> Iterator[Callable[[], Any]]:
    """Counts what ends: a bar in a terminal, otherwise a line now and then.

    Args:
        what: is counted.
        total: of all.
        done: of an earlier start.

    Yields:
        A function to call once for each that ends.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc=what) as bar:
            yield bar.update
        return
    count, started = done, time.monotonic()

    def line() -> str:
        seconds = time.monotonic() - started
        rate = (count - done) / seconds if seconds > 0.0 else 0.0
        left = f", {clock((total - count) / rate)} left" if rate > 0.0 else ""
        return f"{what}: {count} of {total}{left}"

    def add() -> None:
        nonlocal count
        count += 1

    say(f"{what}: {done} of {total}")
    with Heartbeat(line):
        yield add
    say(f"{what}: {count} of {total} in {clock(time.monotonic() - started)}")


def clock(seconds: float) -> str:
    """`1:02:03`."""
    return str(timedelta(seconds=round(seconds)))
