"""API keys: with at least one, every route but the open ones asks for it.

    Authorization: Bearer KEY

The keys come from a file (one a line; empty lines and lines that begin with # do not count) and
from the environment variable MHC_API_KEYS (separated by commas or white space). They are kept as
digests, compared in constant time, and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from mhc_model.errors import ConfigError
from serve.errors import APIError

VARIABLE = "MHC_API_KEYS"
OPEN_PATHS = frozenset({"/", "/health", "/ping", "/ready"})
OPEN_PREFIX = "/static/"
MIN_LENGTH = 8


class ApiKeys:
    """The accepted keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Takes the keys.

        Raises:
            ConfigError: if a key is too short or cannot be sent in a header; the message gives its
                place, never the key.
        """
        for place, key in enumerate(keys, start=1):
            if len(key) < MIN_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(
                    f"API key {place} of {len(keys)} is not usable; a key is at least "
                    f"{MIN_LENGTH} printable ASCII characters without spaces"
                )
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __contains__(self, key: bytes) -> bool:
        digest = _digest(key)
        # All are compared, also after a match: the time tells nothing about which.
        return any([hmac.compare_digest(digest, known) for known in self._digests])


def load_keys(path: str | Path | None) -> ApiKeys:
    """The keys of the file, if one is given, and of the environment.

    Raises:
        ConfigError: if the file cannot be read or has no key, or the variable is set to none.
    """
    keys = []
    if path is not None:
        keys += _read_file(Path(path))
    variable = os.environ.get(VARIABLE)
    if variable is not None:
        found = variable.replace(",", " ").split()
        if not found:
            raise ConfigError(f"{VARIABLE} is set and has no key; give one or unset it")
        keys += found
    return ApiKeys(keys)


def _read_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        # Not the error itself: that of the decoder quotes the file.
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"API key file {path} cannot be read: {reason}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(
            f"API key file {path} has no key; write one a line, or leave the option out to serve "
            f"without keys"
        )
    return keys


def exposure(path: str | Path) -> str | None:
    """What is wrong with the permissions of a file of keys, and the fix; None if nothing."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if not mode & 0o077:
        return None
    return (
        f"other users may read or change the API key file {path} (mode {mode:03o}); chmod 600 "
        f"closes it"
    )


class KeyMiddleware:
    """Refuses HTTP requests and websockets without a known key; a pure ASGI middleware."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_open(scope["path"]) or self._knows(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _unauthorized(_given(scope) is not None).response()(scope, receive, send)
        else:
            await receive()  # a websocket's connection; closing it now makes the server say 403
            await send({"type": "websocket.close", "code": 1008})

    def _knows(self, scope: Scope) -> bool:
        key = _given(scope)
        return key is not None and key in self._keys


def is_open(path: str) -> bool:
    """Whether a path needs no key. The path is compared as it is routed: exactly."""
    return path in OPEN_PATHS or (path.startswith(OPEN_PREFIX) and ".." not in path)


def _given(scope: Scope) -> bytes | None:
    """The request's key; None where there is none, or several."""
    values = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, key = values[0].partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" and key.strip() else None


def _unauthorized(wrong: bool) -> APIError:
    reason = "the API key is not known" if wrong else "this server asks for an API key"
    return APIError(
        HTTPStatus.UNAUTHORIZED,
        f"{reason}; send the header Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
