"""A model whose context holds a passage and a question, and a text that is far longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mhc_model import Engine, save_checkpoint
from serve.app import create_app
from serve.service import CompletionService
from serve.settings import RecursiveSettings

SECONDS = 20


@pytest.fixture(scope="session")
def task() -> dict[str, str]:
    """The text and question of a body."""
    text = "Amber herons wade in the shallows. " * 60
    text += "Rosamund hid the brass key beneath the flagstone. " + "Grey herons sleep late. " * 60
    return {"text": text, "question": "Where did Rosamund hide the key?"}


@pytest.fixture(scope="session")
def reader(tmp_path_factory, tokenizer, tiny_model) -> Path:
    """A checkpoint with a context that holds a passage and a question."""
    directory = tmp_path_factory.mktemp("reader") / "reader"
    behaviours = {"direct": {"gates": [0, 0]}, "worked": {"gates": [1, 1]}}
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=512, behaviours=behaviours)
    save_checkpoint(directory, model, tokenizer)
    return directory


@pytest.fixture
def service(reader) -> Iterator[CompletionService]:
    engine = Engine.from_checkpoint(reader, max_batch=4, device="cpu")
    service = CompletionService(engine, "reader", max_queue=8)
    yield service
    service.close()


@pytest.fixture
def ask(service, task) -> Callable[..., httpx.Response]:
    """`ask(settings={}, **fields)`: one POST /v1/recursive of the task."""

    def send(settings: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
        app = create_app(service, recursive=RecursiveSettings.model_validate(settings or {}))
        body = {**task, "max_tokens": 4, "budget_tokens": 50_000, **fields}

        async def one() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
                return await client.post("/v1/recursive", json=body, timeout=SECONDS)

        return asyncio.run(one())

    return send
