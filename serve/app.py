"""The FastAPI application over a `CompletionService`. Ray Serve is not needed to build it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.auth import ApiKeys, KeyMiddleware
from serve.completions import (
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    Health,
    ModelCard,
    ModelList,
    Ready,
    Version,
)
from serve.errors import error_responses, install_error_handlers
from serve.monitoring import METRICS_CONTENT_TYPE, Observer, Tracing
from serve.playground import page_router
from serve.recursive import RecursiveRequest, RecursiveResponse, RecursiveService
from serve.routing import routing_routes
from serve.service import CompletionService
from serve.settings import RecursiveSettings
from serve.tokens import token_routes

MAX_BODY_BYTES = 4 << 20
_GENERATION_ERRORS = (400, 401, 404, 413, 429, 500, 503, 504)


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
            # Its nesting is bounded too, so that no later code meets the recursion limit.
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(
                HTTPStatus.BAD_REQUEST, f"the body is not valid JSON: {error}"
            ) from None


class StrictRoute(APIRoute):
    """A route that reads its body through `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


class HeadAsGet:
    """Answers HEAD as GET, without the body: FastAPI's routes know GET only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


class Application(FastAPI):
    """FastAPI inside `Tracing`, with an OpenAPI document that says what is true."""

    def __init__(
        self,
        observer: Observer,
        keys: ApiKeys | None,
        origins: Sequence[str],
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._observer = observer
        self._keys = keys
        self._origins = origins

    def build_middleware_stack(self) -> ASGIApp:
        app = super().build_middleware_stack()
        if self._keys:
            app = KeyMiddleware(app, self._keys)
        if self._origins:  # before the keys: a browser asks without one whether it may send it
            app = CORSMiddleware(
                app,
                allow_origins=self._origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        return Tracing(HeadAsGet(app), self._observer)

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # FastAPI's own: ours are 400
        for unused in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(unused, None)
        return document


def create_app(
    service: CompletionService,
    drain_s: float = 0.0,
    keys: ApiKeys | None = None,
    metrics: Callable[[], Awaitable[bytes]] | None = None,
    recursive: RecursiveSettings | None = None,
    origins: Sequence[str] = (),
) -> FastAPI:
    """Builds the application.

    Args:
        service: closed when the application shuts down.
        drain_s: seconds that requests under way then have.
        keys: if there are any, every route but the open ones asks for one.
        metrics: gives the text of GET /metrics; None leaves the route out.
        recursive: limits of sessions over long texts; the defaults if left out.
        origins: of pages elsewhere that browsers let call this server, "*" for all.
    """
    sessions = RecursiveService(service, recursive or RecursiveSettings.model_validate({}))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        sessions.close()
        await asyncio.to_thread(service.close, drain_s)

    app = Application(
        service.observer,
        keys,
        origins,
        title="mhc-gates",
        version=version("mhc-gates"),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their parts from elsewhere; /docs is our own
        redoc_url=None,
    )
    install_error_handlers(app)
    app.include_router(_generation(service))
    app.include_router(_sessions(sessions))
    app.include_router(_description(service))
    app.include_router(page_router())
    app.include_router(token_routes(service, APIRouter(route_class=StrictRoute)))
    app.include_router(routing_routes(service, APIRouter(route_class=StrictRoute)))
    if metrics is not None:
        app.include_router(_metrics(metrics))
    return app


def _generation(service: CompletionService) -> APIRouter:
    router = APIRouter(route_class=StrictRoute)

    @router.post(
        "/v1/completions", responses=_responses(CompletionResponse), response_class=Response
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Completes one or several prompts; `gates` steers the routing of this request."""
        return await service.complete(body, request)

    @router.post(
        "/v1/chat/completions", responses=_responses(ChatResponse), response_class=Response
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation; `gates` steers the routing of this request."""
        return await service.chat(body, request)

    return router


def _sessions(sessions: RecursiveService) -> APIRouter:
    router = APIRouter(route_class=StrictRoute)

    @router.post(
        "/v1/recursive", responses=_responses(RecursiveResponse, 502), response_class=Response
    )
    async def recursive(body: RecursiveRequest, request: Request) -> Response:
        """Answers a question about a text that may be far longer than the context."""
        return await sessions.answer(body, request)

    return router


def _description(service: CompletionService) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", responses=error_responses(401, 500))
    async def models() -> ModelList:
        """The served model and its gates."""
        return service.models()

    # path: a model may be called by its checkpoint's path
    @router.get("/v1/models/{model:path}", responses=error_responses(401, 404, 500))
    async def model(model: str) -> ModelCard:
        """The served model, by any of its names."""
        return service.model(model)

    @router.get("/health", responses=error_responses(500, 503))
    async def health() -> Health:
        """Whether this replica's engine runs."""
        return service.health()

    @router.get("/ping", include_in_schema=False)
    async def ping() -> Response:
        """As /health, without a body."""
        service.health()
        return Response()

    @router.get("/version", responses=error_responses(401, 500))
    async def server_version() -> Version:
        """The server's version."""
        return Version(version=version("mhc-gates"))

    @router.get("/ready", responses=error_responses(500, 503))
    async def ready() -> Ready:
        """Whether this replica would take a request now."""
        return service.ready()

    return router


def _metrics(metrics: Callable[[], Awaitable[bytes]]) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/metrics",
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **error_responses(401, 500),
        },
        response_class=Response,
    )
    async def prometheus() -> Response:
        """Metrics of all replicas, in Prometheus's text format."""
        return Response(await metrics(), media_type=METRICS_CONTENT_TYPE)

    return router


def _responses(model: type[Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of a route that answers with JSON or, where asked to stream, with events."""
    event = {
        "type": "object",
        "properties": {"data": {"type": "string", "description": "a chunk, an error or [DONE]"}},
        "required": ["data"],
    }
    events = {"text/event-stream": {"itemSchema": event}}
    answer = {"model": model, "description": "the answer, or its stream", "content": events}
    return {200: answer, **error_responses(*_GENERATION_ERRORS, *statuses)}
