"""The playground: a static page at / and its files at /static, read once from this room.

No build step and nothing from elsewhere, so that the Content-Security-Policy below can be strict.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response

CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Ask each time, transfer only what changed: a new version of the server shows at once.
    "Cache-Control": "no-cache",
}
INDEX = "index.html"
REFERENCE = "docs.html"


class StaticFile(NamedTuple):
    """One file of the page."""

    content: bytes
    content_type: str
    etag: str


def page_router() -> APIRouter:
    """Routes for the page and its files, outside the OpenAPI document."""
    files = _read_files()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def playground(request: Request) -> Response:
        return _respond(files[INDEX], request)

    @router.api_route("/docs", methods=["GET", "HEAD"])
    async def reference(request: Request) -> Response:
        return _respond(files[REFERENCE], request)

    @router.api_route("/static/{name}", methods=["GET", "HEAD"])
    async def static(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(
                HTTPStatus.NOT_FOUND, f"the page has no file {name!r}; it has {', '.join(files)}"
            )
        return _respond(files[name], request)

    return router


def _read_files() -> dict[str, StaticFile]:
    files = {}
    entries = resources.files("serve.playground").joinpath("static").iterdir()
    for entry in sorted(entries, key=lambda entry: entry.name):
        content_type = CONTENT_TYPES.get(entry.name.rpartition(".")[2])
        if content_type is not None:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[entry.name] = StaticFile(content, content_type, etag)
    return files


def _respond(file: StaticFile, request: Request) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    known = request.headers.get("if-none-match", "")
    if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.content, headers=headers, media_type=file.content_type)
