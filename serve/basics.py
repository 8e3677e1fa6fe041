"""OpenAI's error object as plain values. The standard library only: Serve's proxy imports this."""

from __future__ import annotations

from http import HTTPStatus

RETRY_AFTER_S = 1
# Time for another replica to start, or for Serve's proxy to hear that this one stops.
UNAVAILABLE_RETRY_AFTER_S = 5


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
