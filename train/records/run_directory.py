"""The directory of one run, on a local or shared disk or in a bucket (any pyarrow file system).

config.yaml       resolved configuration
data.json         what the corpus was: its hash tells whether a resumed run sees the same data
metrics.jsonl     one row a step
best.json         the checkpoint with the fewest held-out bits per byte
tensorboard/
step-000100/      model/ (a checkpoint directory) and trainer/ (to resume)
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import pyarrow
import pyarrow.fs

from mhc_model.errors import ConfigError


def step_name(step: int) -> str:
    return f"step-{step:06d}"


class RunDirectory:
    """Small files, checkpoints by step, and a local working copy for files that grow."""

    def __init__(
        self, storage: str, name: str, filesystem: pyarrow.fs.FileSystem | None = None
    ) -> None:
        """Opens a run; nothing is created.

        Args:
            storage: absolute directory of the runs, or a URI; with `filesystem`, a path in it.
            name: of the run.
            filesystem: None finds it by `storage`.

        Raises:
            ConfigError: if there is no file system for the URI.
        """
        try:
            self.filesystem, base = (
                pyarrow.fs.FileSystem.from_uri(storage)
                if filesystem is None
                else (filesystem, storage)
            )
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ConfigError(f"storage {storage!r} cannot be used: {error}") from None
        self.location = f"{storage.rstrip('/')}/{name}"
        self.path = f"{base.rstrip('/')}/{name}"
        self.is_local = isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    @cached_property
    def work(self) -> Path:
        """Where files that grow are written: on this machine; a bucket gets copies of them."""
        return Path(self.path) if self.is_local else Path(tempfile.mkdtemp(prefix="run-"))

    def read_text(self, file: str) -> str | None:
        """Content of a file, None if there is none."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{file}") as stream:
                return stream.read().decode("utf-8")
        except FileNotFoundError:
            return None

    def write_text(self, file: str, text: str) -> None:
        """Writes a file under a temporary name and moves it into place."""
        self.filesystem.create_dir(self.path, recursive=True)
        temporary = f"{self.path}/{file}.tmp"
        with self.filesystem.open_output_stream(temporary) as stream:
            stream.write(text.encode("utf-8"))
        self.filesystem.move(temporary, f"{self.path}/{file}")

    def upload_work(self) -> None:
        """Copies the working files of this machine to a bucket; nothing to do on a disk."""
        if not self.is_local:
            self.filesystem.create_dir(self.path, recursive=True)
            pyarrow.fs.copy_files(str(self.work), self.path, destination_filesystem=self.filesystem)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or not, in rising order."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        names = [info.base_name for info in self.filesystem.get_file_info(selector)]
        matches = (re.fullmatch(r"step-(\d+)", name) for name in names)
        return sorted(int(match.group(1)) for match in matches if match)

    @contextmanager
    def open_step(self, step: int) -> Iterator[Path]:
        """The directory of a checkpoint on this machine, for reading."""
        source = f"{self.path}/{step_name(step)}"
        if self.is_local:
            yield Path(source)
            return
        local = Path(tempfile.mkdtemp(prefix="step-"))
        try:
            pyarrow.fs.copy_files(source, str(local), source_filesystem=self.filesystem)
            yield local
        finally:
            shutil.rmtree(local, ignore_errors=True)

    def delete_step(self, step: int) -> None:
        self.filesystem.delete_dir(f"{self.path}/{step_name(step)}")

    def delete_file(self, file: str) -> None:
        """Deletes a file if it is there."""
        if self.read_text(file) is not None:
            self.filesystem.delete_file(f"{self.path}/{file}")
