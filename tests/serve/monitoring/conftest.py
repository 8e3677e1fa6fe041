"""An observer that keeps what it hears, and an exchange that metrics and the log hear of."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import httpx
import pytest

from mhc_model.engine import EngineStats
from serve.app import create_app
from serve.basics import JsonLog
from serve.monitoring import AccessLog, Observers, ReplicaMetrics, RequestRecord, exposition
from serve.service import CompletionService


class Notes:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.accepted_samples: list[tuple[str, str, int]] = []
        self.first_tokens: list[tuple[str, str, float]] = []
        self.records: list[RequestRecord] = []
        self.loads: list[tuple[EngineStats, int]] = []

    def accepted(self, request_id: str, route: str, samples: int) -> None:
        self.accepted_samples.append((request_id, route, samples))

    def first_token(self, request_id: str, route: str, ttft_s: float) -> None:
        self.first_tokens.append((request_id, route, ttft_s))

    def finished(self, record: RequestRecord) -> None:
        self.records.append(record)

    def load(self, stats: EngineStats, pending: int) -> None:
        self.loads.append((stats, pending))


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def service(make_service, notes) -> CompletionService:
    return make_service(observer=notes)


class Talk(NamedTuple):
    """Four requests, "good", "stream", "bad" and one with a bad id, and what was said of them."""

    answers: list[httpx.Response]
    metrics: bytes
    log: str
    prompt_tokens: int


@pytest.fixture
def talk(make_service, wait_until, tmp_path) -> Talk:
    """Two prompts of 7 tokens each: "good" has gates of its own."""
    metrics, path = ReplicaMetrics("r1"), tmp_path / "access.log"
    service = make_service(observer=Observers(metrics, AccessLog(JsonLog(str(path)))))
    body = {"prompt": ["Question: Tom", "a"], "max_tokens": 7, "temperature": 0, "ignore_eos": True}

    async def text() -> bytes:
        return exposition([metrics.collect()])

    async def run() -> tuple[list[httpx.Response], bytes]:
        app = create_app(service, metrics=text)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answers = [
                await client.post("/v1/completions", json=fields, headers={"x-request-id": name})
                for name, fields in (
                    ("good", {**body, "gates": 0.5}),
                    ("stream", {**body, "stream": True}),
                    ("bad", {**body, "gates": 2}),
                )
            ]
            answers.append(await client.get("/v1/nothing", headers={"x-request-id": "a\tb"}))
            await asyncio.to_thread(wait_until, lambda: service.health().active == 0)
            return answers, (await client.get("/metrics")).content

    answers, counted = asyncio.run(run())
    prompt_tokens = answers[0].json()["usage"]["prompt_tokens"]
    return Talk(answers, counted, path.read_text(), prompt_tokens)
