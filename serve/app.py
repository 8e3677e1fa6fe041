"""The FastAPI application over a `CompletionService`. Ray Serve is not needed to build it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, NoReturn

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute

from serve.errors import error_responses, install_error_handlers
from serve.page import page_router
from serve.schemas import CompletionRequest, CompletionResponse, Health, ModelList
from serve.service import CompletionService

MAX_BODY_BYTES = 4 << 20


class StrictRequest(Request):
    """A request whose body is bounded and whose JSON is JSON: Python's parser also takes NaN."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            chunks = bytearray()
            async for chunk in self.stream():
                chunks += chunk
                if len(chunks) > MAX_BODY_BYTES:
                    raise HTTPException(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        f"the body is larger than {MAX_BODY_BYTES} bytes; send fewer prompts",
                    )
            self._body = bytes(chunks)
        return self._body

    async def json(self) -> Any:
        try:
            return json.loads(await self.body(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:  # bad syntax, bad UTF-8, absurd integers
            raise HTTPException(
                HTTPStatus.BAD_REQUEST, f"the body is not valid JSON: {error}"
            ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class StrictRoute(APIRoute):
    """A route that reads its body through `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def create_app(service: CompletionService) -> FastAPI:
    """Builds the application; its shutdown closes the service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="mhc-gates", lifespan=lifespan)
    install_error_handlers(app)
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/completions", responses=error_responses(400, 404, 413, 429, 500, 503))
    async def completions(body: CompletionRequest) -> CompletionResponse:
        """Completes one or several prompts; `gates` steers the routing of this request."""
        return await service.complete(body)

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The served model and its gates."""
        return service.models()

    @router.get("/health", responses=error_responses(503))
    async def health() -> Health:
        """Whether this replica's engine runs."""
        return service.health()

    app.include_router(router)
    app.include_router(page_router())
    return app
