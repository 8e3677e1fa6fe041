"""Every error leaves the server in OpenAI's envelope, made here and nowhere else.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mhc_model.errors import (
    DataError,
    EndpointError,
    EngineError,
    GateError,
    MHCError,
    SessionError,
)
from serve.basics import RETRY_AFTER_S, UNAVAILABLE_RETRY_AFTER_S, error_body, error_type

MAX_MESSAGE = 2000
CLIENT_CLOSED_REQUEST = 499  # nginx's; never sent, only recorded


class ErrorDetail(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The envelope of every response that is not 2xx."""

    error: ErrorDetail


class APIError(MHCError):
    """An error that knows its HTTP status.

    Attributes:
        status: HTTP status.
        message: names the value, the limit and the fix.
        param: field of the request at fault.
        code: what a program may compare.
        headers: sent with the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        return error_type(self.status)

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """The body."""
        param = None if self.param is None else _shortened(self.param)
        return error_body(self.status, _shortened(self.message), param, self.code)

    def response(self) -> JSONResponse:
        return JSONResponse(self.envelope(), status_code=self.status, headers=self.headers)


def overloaded(limit: int, what: str = "prompts") -> APIError:
    """429: the queue is full."""
    return APIError(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"the server holds {limit} {what} and takes no more now; try again in {RETRY_AFTER_S} s",
        code="server_overloaded",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def unavailable(reason: str) -> APIError:
    """503: the engine does not run, or not for long."""
    return APIError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        reason,
        code="engine_unavailable",
        headers={"Retry-After": str(UNAVAILABLE_RETRY_AFTER_S)},
    )


def timed_out(limit_s: float) -> APIError:
    """504: the request took longer than it may."""
    return APIError(
        HTTPStatus.GATEWAY_TIMEOUT,
        f"the request was not done after {limit_s:g} s and was cancelled; ask for fewer tokens, "
        f"stream, or try again when the server is less busy",
        code="request_timeout",
    )


def as_api_error(error: Exception) -> APIError:
    """The HTTP form of any exception; what is not the caller's fault is a 500 without details."""
    match error:
        case APIError():
            return error
        case GateError():
            return APIError(HTTPStatus.BAD_REQUEST, str(error), "gates", "invalid_gates")
        case EndpointError():
            return APIError(HTTPStatus.BAD_GATEWAY, str(error), "endpoint", "endpoint_failed")
        case EngineError() | DataError() | SessionError():
            return APIError(HTTPStatus.BAD_REQUEST, str(error))
        case RequestValidationError():
            return _validation_error(error)
        case HTTPException():
            return APIError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            return APIError(
                HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log has the details"
            )


def install_error_handlers(app: FastAPI) -> None:
    """Puts every error of `app` into the envelope."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    for kind in (MHCError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(ClientDisconnect, gone)


def field_error(name: str, message: str) -> PydanticCustomError:
    """What a schema raises where a field does not go with the others."""
    return PydanticCustomError("field_error", "{message}", {"message": message, "name": name})


def unknown_field(name: str, known: Sequence[str]) -> PydanticCustomError:
    """What a schema raises for a field that it does not have."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return field_error(name, f"unknown field {name!r}; {hint}")


def _validation_error(error: RequestValidationError) -> APIError:
    """Names the first field at fault; a body that is no object at all has no field."""
    detail = error.errors()[0]
    path = [str(part) for part in detail["loc"][1:]]  # loc[0] is "body"
    name = ".".join(path)
    if detail["type"] == "field_error":
        message = ": ".join([*([name] if name else []), detail["ctx"]["message"]])
        path = path or [detail["ctx"]["name"]]
    elif not path:
        message = "the body must be a JSON object sent with Content-Type: application/json"
    elif detail["type"] == "missing":
        message = f"{name} is required"
    else:
        reason = detail["msg"].removeprefix("Value error, ")
        message = f"{name} is {reprlib.repr(detail['input'])}: {reason}"
    return APIError(HTTPStatus.BAD_REQUEST, message, path[0] if path else None)


def _shortened(text: str) -> str:
    """A message quotes what was sent, which may be megabytes; its end names the limits."""
    if len(text) <= MAX_MESSAGE:
        return text
    half = MAX_MESSAGE // 2
    return f"{text[:half]} ... {text[-half:]}"


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Entries of a route's OpenAPI document."""
    return {status: {"model": ErrorResponse} for status in statuses}
