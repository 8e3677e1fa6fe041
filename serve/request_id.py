"""Which id a request has. The standard library only: Serve's proxy imports this."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable

HEADER = b"x-request-id"
_SANE = re.compile(rb"[!-~](?:[ -~]{0,126}[!-~])?")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's x-request-id if it is 1 to 128 printable ASCII characters, else a new one.

    Args:
        headers: of an ASGI scope, with names in lower case.
    """
    values = [value for name, value in headers if name == HEADER]
    if len(values) == 1 and _SANE.fullmatch(values[0]):
        return values[0].decode("ascii")
    return f"req-{uuid.uuid4().hex}"
