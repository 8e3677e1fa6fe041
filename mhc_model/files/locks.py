"""Directories that one process at a time writes to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mhc_model.errors import ConfigError
from mhc_model.running import remove_if_empty

GONE_WITHIN_S = 2.0


@contextmanager
def locked_directory(directory: Path, taken: str | None) -> Iterator[None]:
    """Makes a directory and keeps other processes that ask out of it. No file in it says so, and
    the lock ends with the process. A directory that was made here and is empty at the end is
    removed, with the parents that were made for it.

    Args:
        directory: on a disk of this machine, or a shared one: there the lock may hold among the
            processes of one machine only.
        taken: the error where another process is in it; None waits until it is out.

    Raises:
        ConfigError: with the text `taken`.
        OSError: if the directory cannot be made, read or locked.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    descriptor = _open_locked(directory, taken)
    remove_if_empty(made)  # if this process is ended
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # something is in it
            for path in made:
                path.rmdir()
        os.close(descriptor)


def _open_locked(directory: Path, taken: str | None) -> int:
    # A command that was killed a moment ago may not be gone yet.
    deadline = time.monotonic() + GONE_WITHIN_S
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if taken is None else fcntl.LOCK_NB))
            # Whoever held it may have removed it: then the lock is on nothing.
            if directory.exists() and os.path.samestat(os.fstat(descriptor), directory.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise ConfigError(taken) from None
            time.sleep(0.05)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
