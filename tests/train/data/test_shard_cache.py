"""Copies of shards: what others planted there never becomes training data."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mhc_model.errors import DataError
from train.data.manifest import ShardEntry
from train.data.shard_cache import fill_cache

CONTENT = {"train-00000.bin": b"\1\0" * 50, "train-00001.bin": b"\2\0" * 50}
ENTRIES = [
    ShardEntry(
        file=name, sha256=hashlib.sha256(content).hexdigest(), tokens=50, documents=1, bytes=50
    )
    for name, content in CONTENT.items()
]


class Bucket:
    """Counts what is read of it."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    def fill(self, base: Path | None) -> Path:
        return fill_cache(base, "corpus", ENTRIES, self._chunks, self._check)

    def _chunks(self, entry: ShardEntry):
        self.reads.append(entry.file)
        yield CONTENT[entry.file][:30]
        yield CONTENT[entry.file][30:]

    def _check(self, entry: ShardEntry, found: str) -> None:
        if found != entry.sha256:
            raise DataError(f"{entry.file} is corrupt")


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.bin")}


def test_each_shard_is_copied_once(tmp_path: Path) -> None:
    bucket = Bucket()
    directory = bucket.fill(tmp_path)
    assert content(directory) == CONTENT
    assert bucket.reads == list(CONTENT)
    assert bucket.fill(tmp_path) == directory
    assert bucket.reads == list(CONTENT)


@pytest.mark.parametrize(
    "plant",
    [
        lambda path: path.write_bytes(b"\3\0" * 50),  # of the right size
        lambda path: path.write_bytes(b""),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/zero"),
    ],
)
def test_a_planted_file_is_replaced(plant: Callable[[Path], object], tmp_path: Path) -> None:
    directory = tmp_path / "corpus"
    directory.mkdir(mode=0o700)
    plant(directory / "train-00001.bin")
    (directory / "train-00000.bin").write_bytes(CONTENT["train-00000.bin"])
    bucket = Bucket()
    assert content(bucket.fill(tmp_path)) == CONTENT
    assert bucket.reads == ["train-00001.bin"]


def test_a_copy_that_changed_is_hashed_again(tmp_path: Path) -> None:
    bucket = Bucket()
    path = bucket.fill(tmp_path) / "train-00000.bin"
    state = path.stat()
    path.write_bytes(b"\3\0" * 50)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert content(bucket.fill(tmp_path)) == CONTENT
    assert bucket.reads == [*CONTENT, "train-00000.bin"]


def test_a_note_of_what_was_checked_may_be_damaged(tmp_path: Path) -> None:
    bucket = Bucket()
    directory = bucket.fill(tmp_path)
    for damage in ("[" * 200_000, "[]", '{"train-00000.bin": 1}', "\0"):
        (directory / "checked.json").write_text(damage)
        assert content(bucket.fill(tmp_path)) == CONTENT
    assert bucket.reads == list(CONTENT)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir(mode=0o700)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "corpus" / "train-00000.tmp").symlink_to(tmp_path / "mine")
    Bucket().fill(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus").chmod(0o777)
    with pytest.raises(DataError, match=r"open to others.*data\.shards_cache"):
        Bucket().fill(tmp_path)
    (tmp_path / "corpus").rmdir()
    (tmp_path / "corpus").symlink_to(tmp_path)
    with pytest.raises(DataError, match="is a link"):
        Bucket().fill(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a directory away")
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir(mode=0o700)
    os.chown(tmp_path / "corpus", 12345, 12345)
    with pytest.raises(DataError, match="another user's"):
        Bucket().fill(tmp_path)


def test_the_directory_of_no_setting_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / "mhc-shards" / "corpus"
    planted.mkdir(parents=True)
    (planted / "train-00000.bin").write_bytes(b"\3\0" * 50)
    directory = Bucket().fill(None)
    assert content(directory) == CONTENT
    assert directory.parent.stat().st_mode & 0o777 == 0o700
    directory.parent.chmod(0o777)
    with pytest.raises(DataError, match="mhc-shards-"):
        Bucket().fill(None)
