"""A command in a process of its own, and a small process that watches it.

What a command does cannot be interrupted from within: libraries replace the handlers of signals,
and sit in native code where none is called. So `supervise` divides the process in two before
anything is loaded. The child goes on as the command. The parent waits, and on SIGINT, SIGTERM or
SIGHUP it says what becomes of the work, ends the command and all that it started, deletes its
private directory, and exits with 128 plus the signal's number.

A command that has to put things in order first says how long that takes (`on_stop`): it is then
told by `stop_signals`, and ended when the time is over, or at the third signal.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import io
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

# The private directory of the command, for all of its processes on this machine.
SCRATCH = "MHC_SCRATCH"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How the parent tells the child. Libraries leave it alone, and a terminal never sends it.
TOLD = signal.SIGUSR1
NOTHING_YET = "nothing was written yet; start the same command again"
# Signals that end a command without the patience that it asked for.
INSISTING = 3
END_S = 10.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

_notes: int | None = (
    None  # where the child writes what to say; None in a process that nobody watches
)


def supervise(spec: ModuleSpec | None) -> None:
    """Returns in a new process, which is the command; this one watches it and exits as it does.

    Call it before anything that takes time is imported. It does nothing unless the interpreter was
    started as `python -m MODULE`: it forks, and a test or a debugger is no process to divide.
    A signal that this process ignores already, as under nohup, is not watched for.

    Args:
        spec: `__spec__` of the module.
    """
    global _notes
    name = "" if spec is None else spec.name.removesuffix(".__main__")
    given = sys.orig_argv[1:]
    if "-m" not in given or given[given.index("-m") + 1 :][:1] != [name]:
        return
    try:
        directory = tempfile.mkdtemp(prefix="mhc-")  # for this user alone (0700)
    except OSError as error:
        print(f"error: no directory for temporary files can be made: {error}", file=sys.stderr)
        sys.exit(2)
    os.environ[SCRATCH] = directory
    read, write = os.pipe()
    watched = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    # No signal comes between the fork and the handlers of either side.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        os.close(write)
        os._exit(_Watch(child, read, directory).until_the_end(watched))
    os.close(read)
    _notes = write
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # in a file, too: its end shows what is done
    for number in watched:
        # The terminal tells both; this one waits for the other. A handler, and not SIG_IGN, which
        # programs that are started from here would inherit.
        signal.signal(number, _wait_for_the_parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    _set_process(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _wait_for_the_parent(number: int, frame: object) -> None:
    pass


def on_stop(what: str, patience_s: float = 0.0) -> None:
    """Says what becomes of the work if the command is told to stop from now on.

    Args:
        what: in words: what is kept, and how to go on. Shown behind the signal's name.
        patience_s: how long the command needs to end by itself once it is told so by a signal of
            `stop_signals`; 0 ends it at once.
    """
    _note({"said": what, "patience_s": patience_s})


def remove_if_empty(directories: Sequence[Path]) -> None:
    """Has directories removed at the end of the command, however it ends, if nothing is in them.

    Args:
        directories: that were made just now, the innermost first.
    """
    _note({"made": [str(directory) for directory in directories]})


def _note(values: dict[str, Any]) -> None:
    if _notes is not None:
        with contextlib.suppress(OSError):
            os.write(_notes, json.dumps(values).encode() + b"\n")


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that tell this process to stop, where it asked for patience."""
    return (signal.SIGINT, signal.SIGTERM) if _notes is None else (TOLD,)


def leave_the_rest() -> None:
    """Ends a watched command at once: what it has started is ended by the process that watches.

    For a command that was told to stop and has put in order what matters. Others go on.
    """
    if _notes is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def private_directory() -> Path:
    """The directory of this command that no other user can read; it is deleted with the command."""
    given = os.environ.get(SCRATCH)
    return Path(given) if given and os.path.isdir(given) else Path(_own_directory())


@functools.cache
def _own_directory() -> str:
    directory = tempfile.mkdtemp(prefix="mhc-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def scratch_directory(prefix: str) -> Path:
    """A new directory for temporary files, which whoever asks deletes; or the end of the command.

    Args:
        prefix: of its name.
    """
    given = os.environ.get(SCRATCH)
    return Path(
        tempfile.mkdtemp(prefix=prefix, dir=given if given and os.path.isdir(given) else None)
    )


class _Watch:
    """The parent's side."""

    def __init__(self, child: int, notes: int, directory: str) -> None:
        self.child, self.notes, self.directory = child, notes, directory
        self.status: int | None = None  # of the child, once it has ended
        self.said, self.patience_s = NOTHING_YET, 0.0
        self.made: list[str] = []  # directories to remove if they are empty
        self.received: list[signal.Signals] = []
        self.deadline = 0.0

    def until_the_end(self, watched: list[signal.Signals]) -> int:
        """Waits for the child; gives the exit status of both."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        os.set_blocking(self.notes, False)
        for number in (*watched, signal.SIGCHLD):
            signal.signal(number, _wait_for_the_parent)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        while self._reap():
            left = max(0.0, self.deadline - time.monotonic()) if self.received else None
            select.select([read], [], [], left)
            with contextlib.suppress(BlockingIOError):
                os.set_blocking(read, False)
                for byte in os.read(read, 4096):
                    if byte in watched:
                        self._stop(signal.Signals(byte))
            if self.received and time.monotonic() >= self.deadline:
                break
        for number in watched:
            signal.signal(number, signal.SIG_IGN)  # the end is near, and quick
        if self.received:
            self._end_all()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._read_notes()
        for directory in self.made:
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        return self._exit_status()

    def _stop(self, number: signal.Signals) -> None:
        """The first signal says what happens; later ones make it quicker."""
        self._read_notes()
        self.received.append(number)
        if len(self.received) == 1:
            _show(f"{number.name}: {self.said}")
            self.deadline = time.monotonic() + self.patience_s
        if self.patience_s > 0.0 and len(self.received) < INSISTING:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, TOLD)
        elif self.patience_s > 0.0:
            _show(f"{number.name} again: ending at once")
            self.deadline = 0.0

    def _read_notes(self) -> None:
        """Whole lines, but for one that the child was writing when it was ended."""
        content = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.notes, 65536):
                content += chunk
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            note = json.loads(line)
            self.said = note.get("said", self.said)
            self.patience_s = note.get("patience_s", self.patience_s)
            self.made += note.get("made", [])

    def _reap(self) -> bool:
        """Takes in processes that have ended; whether the child has not."""
        with contextlib.suppress(ChildProcessError):
            while True:
                found, status = os.waitpid(-1, os.WNOHANG)
                if found == 0:
                    break
                if found == self.child:
                    self.status = status
        return self.status is None

    def _end_all(self) -> None:
        """Ends the child and all below it. What has lost its parent comes to this process."""
        _set_process(_PR_SET_CHILD_SUBREAPER, 1)
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            self._reap()
            found = _descendants(os.getpid()) | _marked(self.directory)
            if self.status is None:
                found.add(self.child)
            if not found:
                return
            for process in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)

    def _exit_status(self) -> int:
        if self.received:
            return 128 + self.received[0]
        code = os.waitstatus_to_exitcode(self.status or 0)
        if code >= 0:
            return code
        name = signal.Signals(-code).name
        hint = ": the machine may have run out of memory" if -code == signal.SIGKILL else ""
        _show(f"error: the command was ended by {name}{hint}")
        return 128 - code


def _descendants(process: int) -> set[int]:
    """Living processes below one; empty where the system does not say (no /proc)."""
    children: dict[int, list[int]] = {}
    for entry, parent in _processes():
        children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [process]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def _marked(directory: str) -> set[int]:
    """Those that lost their parent before: the directory is in their environment."""
    mark, found = f"{SCRATCH}={directory}".encode(), set()
    for entry, _ in _processes():
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found - {os.getpid()}


def _processes() -> Iterator[tuple[Path, int]]:
    """Living ones, each with its parent."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield entry, int(parent)


def _show(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may read it any more
        os.write(2, f"{line}\n".encode())


def _set_process(option: int, value: int) -> None:
    """prctl, which only Linux has; without it some of what a command started may outlive it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
