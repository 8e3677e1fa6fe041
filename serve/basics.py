"""What the service and Serve's HTTP proxy both need: errors as values, request ids, a log of lines.

The standard library only: the proxy is a small process.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import uuid
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TextIO

RETRY_AFTER_S = 1
# Time for another replica to start, or for Serve's proxy to hear that this one stops.
UNAVAILABLE_RETRY_AFTER_S = 5

REQUEST_ID = b"x-request-id"
_SANE_ID = re.compile(rb"[!-~](?:[ -~]{0,126}[!-~])?")

NO_LOG = "off"
LOG_STREAMS = ("stderr", "stdout", NO_LOG)


def error_type(status: int) -> str:
    """OpenAI's `type` of an error with this HTTP status."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, dict[str, str | None]]:
    """The envelope of an error: `{"error": {"message", "type", "param", "code"}}`."""
    detail = {"message": message, "type": error_type(status), "param": param, "code": code}
    return {"error": detail}


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's x-request-id if it is 1 to 128 printable ASCII characters, else a new one.

    Args:
        headers: of an ASGI scope, with names in lower case.
    """
    values = [value for name, value in headers if name == REQUEST_ID]
    if len(values) == 1 and _SANE_ID.fullmatch(values[0]):
        return values[0].decode("ascii")
    return f"req-{uuid.uuid4().hex}"


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
        if target not in LOG_STREAMS:
            # It stays open as long as the process.
            self._file = Path(target).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, entry: dict[str, Any]) -> None:
        """Appends an entry."""
        if self._target == NO_LOG:
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
