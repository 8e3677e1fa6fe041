"""POST /v1/recursive: a session over a long text, read by the served model or another one."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mhc_model.errors import MHCError
from mhc_model.recursion import (
    Answer,
    CancelToken,
    EndpointModel,
    Session,
    SessionSettings,
    Step,
    index_for,
    run_program,
)
from serve.completions import SHUTTING_DOWN, on_disconnect, post_to_loop
from serve.errors import (
    CLIENT_CLOSED_REQUEST,
    APIError,
    as_api_error,
    overloaded,
    timed_out,
    unavailable,
)
from serve.monitoring import RequestTrace, trace_of
from serve.recursive.model import ServedModel
from serve.recursive.schemas import (
    FoundPassage,
    RecursiveRequest,
    RecursiveResponse,
    SessionStep,
    SessionUsage,
    StepEvent,
)
from serve.service import CompletionService
from serve.settings import RecursiveSettings


class RecursiveService:
    """Runs sessions, each in a thread of its own, over one completion service."""

    def __init__(self, service: CompletionService, settings: RecursiveSettings) -> None:
        self._service = service
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.max_sessions, "session")
        self._running = 0  # the event loop's thread alone changes it

    def close(self) -> None:
        """Starts no further session; those under way end when their calls do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def answer(self, body: RecursiveRequest, request: Request) -> Response:
        """Answers a request, whole or as a stream of steps.

        If the client goes away, or the time is over, the session is cancelled.

        Raises:
            APIError: 400 for what the server does not allow, 404 for another model's name, 413 for
                a text that is too long, 429 if too many sessions run, 504 past the deadline.
            MHCError: of the session; all have an HTTP form.
            ClientDisconnect: if nobody waits for the answer.
        """
        self._check(body)
        run = _Run(body, self._service, trace_of(request))
        # Before the session starts: it must not miss a step.
        events = _Events(run, self._service.timeout_s) if body.stream else None
        future = self._start(run)
        if events is not None:
            return events.follow(future)
        async with on_disconnect(request.receive, run.leave):
            response = await run.wait(future, self._service.timeout_s)
        return Response(response.model_dump_json(), media_type="application/json")

    def _start(self, run: _Run) -> Future[RecursiveResponse]:
        if self._running >= self._settings.max_sessions:
            raise overloaded(self._settings.max_sessions, "sessions")
        try:
            future = self._threads.submit(run.answer)
        except RuntimeError:  # what an executor that was shut down says
            raise unavailable(SHUTTING_DOWN) from None
        self._running += 1
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: post_to_loop(loop, self._ended))
        run.trace.accepted(1)
        return future

    def _ended(self) -> None:
        self._running -= 1

    def _check(self, body: RecursiveRequest) -> None:
        if len(body.text) > self._settings.max_text_chars:
            raise APIError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"text has {len(body.text)} characters; at most {self._settings.max_text_chars}",
                "text",
            )
        if body.budget_tokens > self._settings.max_budget_tokens:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                f"budget_tokens is {body.budget_tokens}; this server gives a session at most "
                f"{self._settings.max_budget_tokens}",
                "budget_tokens",
            )
        if body.endpoint is None:
            self._service.check_model(body.model)
            return
        allowed = {url.rstrip("/") for url in self._settings.endpoints}
        if body.endpoint.url.rstrip("/") not in allowed:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                "this server does not call that endpoint; leave it out, or have its address added "
                "to the server's setting recursive.endpoints",
                "endpoint",
                "endpoint_not_allowed",
            )


class _Run:
    """One request's session: made and run in a thread, cancelled from the event loop."""

    def __init__(
        self, body: RecursiveRequest, service: CompletionService, trace: RequestTrace
    ) -> None:
        self.trace = trace
        self.cancel = CancelToken()
        self.listener: Callable[[Step], None] | None = None
        self._gone = False
        self._body = body
        self._service = service
        self._model: ServedModel | EndpointModel
        if body.endpoint is None:
            self._model = ServedModel(service)
        else:
            to = body.endpoint
            self._model = EndpointModel(to.url, to.model, to.api_key, to.context)

    def leave(self) -> None:
        """The client has gone."""
        self._gone = True
        self.cancel.cancel()

    async def wait(self, future: Future[RecursiveResponse], timeout_s: float) -> RecursiveResponse:
        """The response; cancels the session if this wait ends before it."""
        try:
            response = await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
        except TimeoutError:
            raise timed_out(timeout_s) from None
        finally:
            self.cancel.cancel()
        if self._gone:
            raise ClientDisconnect
        return response

    def answer(self) -> RecursiveResponse:
        """Runs the session to its end, in this thread."""
        body = self._body
        settings = SessionSettings.model_validate(
            body.model_dump(include={"budget_tokens", "max_depth", "k", "max_tokens"})
        )
        index = index_for(body.text, self._model, settings, cancel=self.cancel)
        session = Session(index, self._model, settings, body.gates, self.cancel, self._tell)
        try:
            if body.program is not None:
                answer = run_program(session, body.program)
            else:
                answer = session.ask(body.question or "")
        finally:
            self.trace.prompt_tokens = session.usage.prompt_tokens
            self.trace.completion_tokens = session.usage.completion_tokens
        return self._response(session, answer)

    def _tell(self, step: Step) -> None:
        if self.listener is not None:
            self.listener(step)

    def _response(self, session: Session, answer: Answer) -> RecursiveResponse:
        served = self._model if isinstance(self._model, ServedModel) else None
        card = self._service.card
        endpoint = self._body.endpoint
        read, chunks = answer.read
        return RecursiveResponse(
            id=f"rec-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=card.id if endpoint is None else endpoint.model,
            checkpoint=card.checkpoint if endpoint is None else None,
            answer=answer.text,
            finish_reason=answer.finish_reason,
            detail=answer.detail,
            passages=[FoundPassage(**passage.as_json()) for passage in answer.passages],
            chunks_read=read,
            chunks=chunks,
            transcript=[SessionStep(**step.as_json()) for step in session.transcript.steps],
            usage=SessionUsage(**session.usage.as_json()),
            **({} if served is None else served.gates),
        )


class _Events(Response):
    """A `recursive.step` event a step, then the answer or an error, then `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(self, run: _Run, timeout_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]  # of the empty body that `super` knows
        self._run = run
        self._timeout_s = timeout_s
        self._future: Future[RecursiveResponse] = Future()
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Step | None] = asyncio.Queue()
        run.listener = self._put

    def follow(self, future: Future[RecursiveResponse]) -> _Events:
        """Ends with this future."""
        self._future = future
        future.add_done_callback(lambda _: self._put(None))
        return self

    def _put(self, step: Step | None) -> None:
        post_to_loop(self._loop, self._queue.put_nowait, step)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        async with on_disconnect(receive, self._run.leave):
            try:
                await send({"type": "http.response.start", **start})
                ending = asyncio.create_task(self._run.wait(self._future, self._timeout_s))
                while (step := await self._queue.get()) is not None:
                    event = StepEvent(step=SessionStep(**step.as_json()))
                    await self._send(send, f"data: {event.model_dump_json()}\n\n")
                await self._send(send, await self._last(ending), more=False)
            except (ClientDisconnect, OSError):  # OSError: the HTTP server noticed first
                self._run.trace.failure = CLIENT_CLOSED_REQUEST
            finally:
                self._run.cancel.cancel()

    async def _last(self, ending: asyncio.Task[RecursiveResponse]) -> str:
        try:
            response = await ending
        except MHCError as error:
            failure = as_api_error(error)
            self._run.trace.failure = failure.status
            return f"data: {json.dumps(failure.envelope())}\n\n"
        return f"data: {response.model_dump_json()}\n\ndata: [DONE]\n\n"

    async def _send(self, send: Send, text: str, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
