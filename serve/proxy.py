"""What stands in Ray Serve's HTTP proxy before everything else: `Front`.

Serve alone gives a bare 500 when a replica dies under a request, and cuts a stream off without a
word. Behind `Front`

- a request whose replica died before it answered goes to another one, waiting for it if need be:
  completions have no side effects. After `ATTEMPTS` replicas it is a 503
- a stream that had begun ends with an error event
- no request outlives its deadline, also while there is no replica: 504
- what the proxy says by itself comes in the API's error envelope; its list of routes is closed
- `x-request-id` is taken from the client if it is sane, else made, and sent back once

The proxy finds it by the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which
`proxy_environment` sets for the Serve controller; the proxies inherit it. The proxy is a small
process: this module loads nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from serve.basics import (
    REQUEST_ID,
    RETRY_AFTER_S,
    UNAVAILABLE_RETRY_AFTER_S,
    JsonLog,
    error_body,
    request_id_of,
)

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ATTEMPTS = 3
# The replica says 504 first, with more words; the front's deadline is for when it cannot.
GRACE_S = 1.0
# Kept for another attempt. Above it, and so above what a replica reads, nothing more is read.
MAX_BODY_BYTES = 16 << 20

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
TIMEOUT = "MHC_REQUEST_TIMEOUT_S"
ACCESS_LOG = "MHC_ACCESS_LOG"
RAY_ROUTES = "MHC_RAY_ROUTES"

# Serve's own, with which a client could lift the deadline or choose a replica.
CONTROL_HEADERS = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve-multiplexed-model-id",
        b"x-session-id",
    }
)
_RETRY_AFTER_S = {
    HTTPStatus.TOO_MANY_REQUESTS: RETRY_AFTER_S,
    HTTPStatus.SERVICE_UNAVAILABLE: UNAVAILABLE_RETRY_AFTER_S,
}


def proxy_environment(request_timeout_s: float, access_log: str) -> dict[str, str]:
    """Environment variables of the Serve controller that put `Front` into its proxies."""
    return {
        CALLBACK: "serve.proxy.middlewares",
        TIMEOUT: str(request_timeout_s),
        ACCESS_LOG: access_log,
    }


def middlewares() -> list[Middleware]:
    """Called by Serve's proxy when it starts."""
    from starlette.middleware import Middleware  # which the proxy has loaded itself

    return [
        Middleware(
            Front,
            timeout_s=float(os.environ.get(TIMEOUT, "600")),
            log=JsonLog(os.environ.get(ACCESS_LOG, "stderr")),
            ray_routes=os.environ.get(RAY_ROUTES) == "1",
        )
    ]


class Front:
    """The outermost ASGI application of a proxy; see the module's docstring."""

    def __init__(self, app: ASGIApp, timeout_s: float, log: JsonLog, ray_routes: bool) -> None:
        """Wraps Serve's proxy.

        Args:
            app: Serve's proxy.
            timeout_s: seconds that a request may take in all.
            log: gets a line for each request that the front itself answers or breaks off.
            ray_routes: whether /-/routes and /-/healthz answer, without a key.
        """
        self._app = app
        self._timeout_s = timeout_s
        self._log = log
        self._ray_routes = ray_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._timeout_s + GRACE_S, self._ray_routes)
        for _ in range(ATTEMPTS):
            if exchange.remaining_s() <= 0.0:
                break
            await self._app(exchange.scope(), exchange.reader(), exchange.send)
            if exchange.over:
                break
        await exchange.end()
        if exchange.spoke is not None:
            self._log.write(exchange.entry())


class _Exchange:
    """One request and what has become of it, over several attempts."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, timeout_s: float, ray_routes: bool
    ) -> None:
        self.id = request_id_of(scope["headers"])
        self.spoke: HTTPStatus | None = None  # what the front itself told the client
        self._begun = time.monotonic()
        self._timeout_s = timeout_s
        self._receive = receive
        self._send = send
        self._read: list[Message] = []
        self._size = 0
        self._left = False  # the client has gone, or needs nothing more
        self._started = False
        self._status = 0
        self._events = False  # an event stream
        self._complete = False
        self._scope = _cleaned(scope, self.id, ray_routes)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to try."""
        return self._complete or self._left or self._started

    def remaining_s(self) -> float:
        return self._begun + self._timeout_s - time.monotonic()

    def scope(self) -> Scope:
        """The scope of an attempt; the proxy ends it at the deadline."""
        limit = (b"x-request-timeout-seconds", b"%.3f" % max(self.remaining_s(), 0.001))
        return {**self._scope, "headers": [*self._scope["headers"], limit]}

    def reader(self) -> Receive:
        """What an attempt reads: first what earlier ones have read."""
        earlier = iter(list(self._read))

        async def receive() -> Message:
            for message in earlier:
                return message
            if self._size > MAX_BODY_BYTES:
                await asyncio.Event().wait()  # until the attempt ends; its replica says 413
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._left = True
            else:
                self._size += len(message.get("body", b""))
                self._read.append(message)
            return message

        return receive

    async def send(self, message: Message) -> None:
        """What an attempt answers."""
        if message["type"] == "http.response.start":
            own = _of_proxy(message)
            if own is not None:
                await self._refuse(own)
                return
            self._started = True
            self._status = message["status"]
            kind = _header(message, b"content-type")
            self._events = kind.startswith(b"text/event-stream")
            message = {**message, "headers": _with_id(message["headers"], self.id)}
        elif self.spoke is not None:
            return  # the rest of what was replaced
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = True
        await self._send(message)

    async def end(self) -> None:
        """Called after the last attempt: says what is still to be said."""
        if self._left or self._complete:
            return
        late = self.remaining_s() <= 0.0
        status = HTTPStatus.GATEWAY_TIMEOUT if late else HTTPStatus.SERVICE_UNAVAILABLE
        if not self._started:
            await self._refuse(status)
        elif self._events:
            await self._break_off(status)
        # Any other response that was cut off ends as Serve lets it end: the connection closes.

    async def _refuse(self, status: HTTPStatus) -> None:
        """Answers in the API's envelope."""
        self.spoke, self._status, self._started, self._complete = status, status, True, True
        body = json.dumps(_error(status, self._timeout_s)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if status in _RETRY_AFTER_S:
            headers.append((b"retry-after", b"%d" % _RETRY_AFTER_S[status]))
        headers = _with_id(headers, self.id)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _break_off(self, status: HTTPStatus) -> None:
        """Ends a stream whose replica has died, so that nobody takes its beginning for all."""
        self.spoke, self._complete = status, True
        event = f"data: {json.dumps(_error(status, self._timeout_s))}\n\n".encode()
        # What came last may be half an event: an empty line ends it.
        await self._send({"type": "http.response.body", "body": b"\n\n" + event})

    def entry(self) -> dict[str, Any]:
        """The line of the access log; fields as in `serve.monitoring.AccessLog`."""
        late = self.spoke == HTTPStatus.GATEWAY_TIMEOUT
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": self.id,
            "route": self._scope["path"][:200],
            "ms": round(1e3 * (time.monotonic() - self._begun), 3),
            "outcome": "timeout" if late else "unavailable",
            "status": int(self._status),
        }


def _cleaned(scope: Scope, request_id: str, ray_routes: bool) -> Scope:
    """The scope without what clients may not say to Serve, and with the request's id."""
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name != REQUEST_ID and name.replace(b"_", b"-") not in CONTROL_HEADERS
    ]
    cleaned = {**scope, "headers": [*headers, (REQUEST_ID, request_id.encode())]}
    if scope["path"].startswith("/-/") and not ray_routes:
        # Unknown to the service as to everybody: it asks for the key, then says 404.
        cleaned["path"] = "/unknown" + scope["path"]
        cleaned["raw_path"] = cleaned["path"].encode()
    return cleaned


def _of_proxy(message: Message) -> HTTPStatus | None:
    """What to say in place of an answer that is the proxy's own: the service's errors are JSON."""
    status = message["status"]
    if status < 400 or not _header(message, b"content-type").startswith(b"text/plain"):
        return None
    if status == HTTPStatus.REQUEST_TIMEOUT:
        return HTTPStatus.GATEWAY_TIMEOUT
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return HTTPStatus.TOO_MANY_REQUESTS
    return HTTPStatus.SERVICE_UNAVAILABLE  # also 404: there is no application now


def _error(status: HTTPStatus, timeout_s: float) -> dict[str, Any]:
    if status == HTTPStatus.GATEWAY_TIMEOUT:
        message = f"not finished within {timeout_s:g} s; ask for fewer tokens, or try again"
        return error_body(status, message, code="timeout")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        message = "the server takes no more requests now; try again in 1 s"
        return error_body(status, message, code="server_overloaded")
    message = "no engine replica could answer; it is being replaced, or the server is stopping"
    return error_body(status, f"{message}: try again", code="engine_unavailable")


def _header(message: Message, name: bytes) -> bytes:
    return next((v for key, v in message.get("headers", []) if key.lower() == name), b"")


def _with_id(headers: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """Exactly one x-request-id: the service and Serve have both added theirs."""
    others = [(name, value) for name, value in headers if name.lower() != REQUEST_ID]
    return [*others, (REQUEST_ID, request_id.encode())]
