"""A directory that one process at a time writes to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock_directory(directory: Path) -> int | None:
    """Keeps other processes that ask out of a directory, without a file in it.

    Returns:
        A descriptor, which holds the lock until it is closed or the process ends; None if another
        process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
