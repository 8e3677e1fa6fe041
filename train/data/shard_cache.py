"""Copies of a bucket's shards on a machine's own disk: private, and what the manifest says.

The directory for temporary files is open to all users of a machine, so a copy counts only if nobody
else could have written it, and its sha256 is the manifest's.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mhc_model.errors import DataError
from mhc_model.files import locked_directory, replace_json
from train.data.manifest import ShardEntry

CHECKED = "checked.json"  # copies that were hashed: name -> their state then, and the sha256
OTHERS = stat.S_IWGRP | stat.S_IWOTH

State = list[int]


def fill_cache(
    base: Path | None,
    name: str,
    entries: Sequence[ShardEntry],
    chunks_of: Callable[[ShardEntry], Iterator[bytes]],
    check_hash: Callable[[ShardEntry, str], None],
) -> Path:
    """The directory with a copy of every shard; copies those that are not there.

    All workers of a machine ask at once; one copies, or hashes what an earlier run copied.

    Args:
        base: where to keep it; None is a directory of this user's in the one for temporary files.
        name: of the corpus.
        entries: the shards.
        chunks_of: the content of a shard as its bucket has it.
        check_hash: raises for a sha256 that is not the manifest's.

    Raises:
        DataError: if another user could write there, or as `check_hash`.
    """
    if base is None:
        base = Path(tempfile.gettempdir(), f"mhc-shards-{os.getuid()}")
        _make_private(base)
    directory = base / name
    _make_private(directory)
    with locked_directory(directory, taken=None):
        checked = _read_checked(directory / CHECKED)
        for entry in entries:
            target = directory / entry.file
            if checked.get(entry.file) == [entry.sha256, *_state(target)]:
                continue
            if _hash(target) != entry.sha256:
                _copy(chunks_of(entry), target, lambda found, entry=entry: check_hash(entry, found))
            checked[entry.file] = [entry.sha256, *_state(target)]
            replace_json(directory / CHECKED, checked)
    return directory


def _make_private(directory: Path) -> None:
    """Makes a directory for this user alone, or makes sure that an existing one is no other's.

    Raises:
        DataError: naming it and what to do.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise DataError(f"{directory}, for copies of shards: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & OTHERS:
        raise DataError(
            f"{directory}, for copies of shards, is a link, another user's, or open to others to "
            f"write: what is in it may be anything; remove it, make it private (chmod 700), or "
            f"give another directory (data.shards_cache)"
        )


def _state(path: Path) -> State:
    """What changes when a file does; nothing for what is no regular file."""
    try:
        found = path.lstat()
    except OSError:
        return []
    if not stat.S_ISREG(found.st_mode):
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ino, found.st_uid]


def _hash(path: Path) -> str | None:
    """The sha256 of a regular file of this user's; None for anything else."""
    if _state(path)[3:] != [os.getuid()]:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(chunks: Iterator[bytes], target: Path, check: Callable[[str], None]) -> None:
    temporary = target.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)  # never through a link
    digest = hashlib.sha256()
    with temporary.open("xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    check(digest.hexdigest())
    temporary.replace(target)


def _read_checked(path: Path) -> dict[str, list[str | int]]:
    """An unreadable file counts as none: the copies are hashed again."""
    try:
        checked = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return checked if isinstance(checked, dict) else {}
