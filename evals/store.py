"""samples.jsonl while a run goes on: rows are appended as samples end, a restart goes on there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mhc_model.errors import ConfigError, DataError
from mhc_model.files import locked_directory, parse_row, replace_bytes, replace_text, split_lines
from mhc_model.settings import differences

if TYPE_CHECKING:  # the tasks load torch, and who only reads results needs none
    from evals.tasks import Sample

RUN, SAMPLES = "run.json", "samples.jsonl"


class SampleStore:
    """The samples of one run directory; one process at a time.

    run.json says of what the samples are (checkpoint, gates, problems, limits). A directory with
    samples of anything else is refused.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """Opens a new directory or one that an interrupted run left.

        Raises:
            ConfigError: if it holds samples of another run, naming what differs, or another process
                is writing there.
            DataError: if its files are damaged; a last line that was cut off is dropped.
        """
        self.directory = directory
        self._rows: dict[tuple[str, str], Sample] = {}
        path = directory / RUN
        # What was read from JSON compares with what went through it.
        self._identity = json.loads(json.dumps(identity))
        if path.exists():
            self._check_identity(path)
        elif (directory / SAMPLES).exists():
            raise ConfigError(f"{directory} has {SAMPLES} but no {RUN}; give another directory")
        self._lock = ExitStack()
        taken = f"another process is writing to {directory}"
        self._lock.enter_context(locked_directory(directory, taken))
        try:
            self._kept = self._read()
        except BaseException:
            self._lock.close()
            raise
        self._file: TextIO | None = None
        if path.exists():  # otherwise nothing is written before the first sample
            self._begin()

    def _begin(self) -> TextIO:
        """Makes the directory this run's."""
        if self._file is None:
            identity = json.dumps(self._identity, indent=2, ensure_ascii=False) + "\n"
            replace_text(self.directory / RUN, identity)
            replace_bytes(self.directory / SAMPLES, self._kept)
            self._file = (self.directory / SAMPLES).open("a", encoding="utf-8")
        return self._file

    def done(self, task: str) -> set[str]:
        """Ids of the samples that are there."""
        return {identity for name, identity in self._rows if name == task}

    def add(self, task: str, row: Sample) -> None:
        """Appends a finished sample; it survives the end of this process."""
        line = json.dumps({"task": task, **row}, ensure_ascii=False)
        # What is kept is what a restart would read, so that both give the same results.
        self._rows[task, row["id"]] = json.loads(line)
        file = self._begin()
        file.write(line + "\n")
        file.flush()

    def rows(self, task: str, ids: Sequence[str]) -> list[Sample]:
        """These samples, in this order; all must be there."""
        return [self._rows[task, identity] for identity in ids]

    def finish(self, order: Sequence[tuple[str, str]]) -> None:
        """Puts the samples, named by task and id, in order."""
        self._begin().close()
        lines = (json.dumps(self._rows[key], ensure_ascii=False) + "\n" for key in order)
        replace_text(self.directory / SAMPLES, "".join(lines))

    def close(self) -> None:
        """Lets another process have the directory."""
        if self._file is not None:
            self._file.close()
        self._lock.close()

    def _check_identity(self, path: Path) -> None:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if different := differences(before, self._identity):
            named = (f"{path}: {then!r} and {now!r}" for path, then, now in different)
            raise ConfigError(
                f"{self.directory} holds samples of another run; give another directory. "
                + "; ".join(named)
            )

    def _read(self) -> bytes:
        """Takes in the rows of an interrupted run; returns the whole lines."""
        path = self.directory / SAMPLES
        if not path.exists():
            return b""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        kept = content[: content.rfind(b"\n") + 1]  # the rest may end within a character
        for number, line in enumerate(split_lines(kept), start=1):
            try:
                row = parse_row(line)
                self._rows[row["task"], row["id"]] = row
            except (DataError, KeyError, TypeError) as error:
                raise DataError(f"{path} line {number} is damaged: {error}") from None
        return kept
