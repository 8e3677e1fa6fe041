"""Files: written whole or not at all, files of one JSON value a line, their hashes; and directories
that one process at a time writes to."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mhc_model.errors import ConfigError
from mhc_model.running import remove_if_empty


def replace_text(path: Path, text: str) -> None:
    """Writes UTF-8 text under a temporary name and renames it: readers see the old or the new."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """As `replace_text`."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def replace_json(path: Path, value: Any) -> None:
    """As `replace_text`, with a value as indented JSON."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def file_sha256(path: Path) -> str:
    """Of the content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file without their ends. Only "\\n" ends a line: `str.splitlines` also
    splits at U+0085, U+2028 and others, which JSON strings may contain as they are.

    Raises:
        OSError: if the file cannot be read.
        UnicodeDecodeError: if it is not UTF-8, as where a character was cut off.
    """
    return [line.decode("utf-8") for line in split_lines(path.read_bytes())]


def split_lines(content: bytes) -> list[bytes]:
    """Lines of a file's content without their ends; the last one may lack its end."""
    return content.removesuffix(b"\n").split(b"\n") if content else []


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
            raise ConfigError(taken) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
