"""A log of JSON lines. The standard library only: Serve's proxy imports this."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

OFF = "off"
STREAMS = ("stderr", "stdout", OFF)


class JsonLog:
    """Writes one line an entry, whole: several processes may append to one file."""

    def __init__(self, target: str) -> None:
        """Opens the log.

        Args:
            target: "stderr", "stdout", "off" or a file, which is appended to.

        Raises:
            OSError: if the file cannot be opened.
        """
        self._target = target
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        if target not in STREAMS:
            # It stays open as long as the process.
            self._file = Path(target).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, entry: dict[str, Any]) -> None:
        """Appends an entry."""
        if self._target == OFF:
            return
        # Looked up each time: Ray replaces the streams of its workers.
        stream = self._file or getattr(sys, self._target)
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n"
        with self._lock:
            stream.write(line)
            stream.flush()

    def close(self) -> None:
        """Closes the file, where there is one."""
        if self._file is not None:
            self._file.close()
