"""A tiny model whose gates change its output, saved with a tokenizer, and servers over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from mhc_model import Engine, save_checkpoint
from mhc_model.tokenizer import Tokenizer
from serve.app import create_app
from serve.service import CompletionService

CONTEXT = 96
TEXTS = ["Question: Tom has 7 apples and buys 5 more.\nAnswer: 7 + 5 = 12", "naïve café, 東京"] * 8


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer, tiny_model) -> Path:
    """An mHC checkpoint of 3 layers, so 6 gates."""
    directory = tmp_path_factory.mktemp("served") / "tiny"
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=CONTEXT)
    save_checkpoint(directory, model, tokenizer)
    return directory


@pytest.fixture(scope="session")
def plain_checkpoint(tmp_path_factory, tokenizer, tiny_model) -> Path:
    directory = tmp_path_factory.mktemp("served-plain") / "plain"
    model = tiny_model(plain=True, vocab_size=tokenizer.vocab_size, max_seq_len=CONTEXT)
    save_checkpoint(directory, model, tokenizer)
    return directory


@pytest.fixture(scope="session")
def make_engine(checkpoint) -> Callable[..., Engine]:
    def make(path: Path = checkpoint, max_batch: int = 4) -> Engine:
        return Engine.from_checkpoint(path, max_batch=max_batch, device="cpu")

    return make


@pytest.fixture
def make_service(make_engine, checkpoint) -> Iterator[Callable[..., CompletionService]]:
    """Services that are closed at the end of the test."""
    services: list[CompletionService] = []

    def make(engine: Engine | None = None, **arguments: Any) -> CompletionService:
        arguments = {"aliases": [str(checkpoint)], **arguments}
        service = CompletionService(engine or make_engine(), "tiny", **arguments)
        services.append(service)
        return service

    yield make
    for service in services:
        service.close()


_app_of = lru_cache(maxsize=1)(create_app)  # building an app costs more than a call


def _client_of(service: CompletionService) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(_app_of(service), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


@pytest.fixture(scope="session")
def client_of() -> Callable[[CompletionService], httpx.AsyncClient]:
    """A client of a service's real application, without a socket."""
    return _client_of


@pytest.fixture
def call(make_service) -> Callable[..., httpx.Response]:
    """`call(method, path, service=None, **arguments of httpx)`: one HTTP call."""
    default: list[CompletionService] = []

    def send(
        method: str, path: str, service: CompletionService | None = None, **arguments: Any
    ) -> httpx.Response:
        if service is None and not default:
            default.append(make_service())

        async def one() -> httpx.Response:
            async with _client_of(service or default[0]) as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(one())

    return send


@pytest.fixture
def post(call) -> Callable[..., httpx.Response]:
    """`post(service=None, **fields)`: one POST /v1/completions."""

    def send(service: CompletionService | None = None, **fields: Any) -> httpx.Response:
        return call("POST", "/v1/completions", service, json=fields)

    return send
