"""A tiny model whose gates change its output, saved with a tokenizer, and servers over it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from vllm_engines import ENGINES, vllm_engines

from mhc_model import Engine, Request, SamplingParams, save_checkpoint
from mhc_model.checkpoint import checkpoint_hash, read_model_config
from mhc_model.config import PolicyConfig
from mhc_model.engine import Completion, EngineBase
from mhc_model.policy import GatePolicy
from mhc_model.tokenizer import Tokenizer
from serve.app import create_app
from serve.service import CompletionService

CONTEXT = 96
# Modules whose tests run over both engines.
BOTH_ENGINES = {
    "test_batcher",
    "test_calls",
    "test_lm_eval",
    "test_logprobs",
    "test_openai_client",
    "test_responses",
    "test_sampling_fields",
    "test_serve_gates",
    "test_serve_routing",
    "test_service",
    "test_streaming",
}
TEXTS = ["Question: Tom has 7 apples and buys 5 more.\nAnswer: 7 + 5 = 12", "naïve café, 東京"] * 8


SECONDS = 20


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_kind" in metafunc.fixturenames and metafunc.module.__name__ in BOTH_ENGINES:
        metafunc.parametrize("engine_kind", ENGINES, indirect=True, scope="session")


class Valve:
    """Sits in a model's first layer: holds the engine's thread, makes it fail, counts passes."""

    def __init__(self, engine: EngineBase) -> None:
        self.open = threading.Event()
        self.fail = False
        self.passes = 0
        self._engine = engine
        self._hook = engine.model.layers[0].attention.register_forward_pre_hook(self._pass)

    def remove(self) -> None:
        self.open.set()
        self._hook.remove()
        if self.fail:
            vllm_engines.discard(self._engine)

    def _pass(self, module: Any, arguments: Any) -> None:
        self.open.wait(SECONDS)
        self.passes += 1
        if self.fail:
            raise RuntimeError("device lost")


@pytest.fixture
def make_valve() -> Iterator[Callable[[EngineBase], Valve]]:
    """`make_valve(engine)`: closed at first; open at the end of the test."""
    valves: list[Valve] = []

    def make(engine: EngineBase) -> Valve:
        valves.append(Valve(engine))
        return valves[-1]

    yield make
    for valve in valves:
        valve.remove()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """`wait_until(condition)`: fails if it does not come true in 20 seconds."""
    return _wait_until


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


BEHAVIOURS: dict[str, dict[str, Any]] = {
    "direct": {"gates": [0.0, 0.3], "share": 0.5, "style": "direct"},
    "odd": {"gates": [0.0, 1.0], "at": [0.0, 0.1, 0.2, 0.3, 0.4, 1.0]},
    "worked": {"gates": [[0.7, 1.0], [0.2, 0.4], [0.5, 0.5]]},
}


@pytest.fixture(scope="session")
def behaved_checkpoint(tmp_path_factory, tokenizer, tiny_model) -> Path:
    """The same model with three behaviours: global, per layer and per sublayer."""
    directory = tmp_path_factory.mktemp("served-behaved") / "behaved"
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=CONTEXT, behaviours=BEHAVIOURS)
    save_checkpoint(directory, model, tokenizer)
    return directory


@pytest.fixture(scope="session")
def make_policy(checkpoint) -> Callable[..., GatePolicy]:
    """`make_policy(path=checkpoint, **fields)`: its weights are random, so that prompts get visibly
    different gates."""

    def make(path: Path = checkpoint, **fields: Any) -> GatePolicy:
        config = read_model_config(path)
        values = {
            "action_space": "per_sublayer",
            "n_layers": config.n_layers,
            "observation_dim": config.d_model,
            "checkpoint_hash": checkpoint_hash(path),
        }
        policy = GatePolicy(PolicyConfig(**{**values, **fields}))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return policy.eval()

    return make


@pytest.fixture(scope="session")
def make_engine(checkpoint, engine_kind) -> Callable[..., EngineBase]:
    def make(path: Path = checkpoint, max_batch: int = 4) -> EngineBase:
        if engine_kind == "vllm":
            return vllm_engines.take(path, max_batch=max_batch, device="cpu")
        return Engine.from_checkpoint(path, max_batch=max_batch, device="cpu")

    return make


@pytest.fixture
def make_service(make_engine, checkpoint) -> Iterator[Callable[..., CompletionService]]:
    """Services that are closed at the end of the test."""
    services: list[CompletionService] = []

    def make(engine: EngineBase | None = None, **arguments: Any) -> CompletionService:
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


@contextmanager
def _serving(service: CompletionService, **arguments: Any) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(service, **arguments)
        config = uvicorn.Config(app, log_level="warning", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        _wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(SECONDS)


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """`with serving(service, **arguments of create_app) as url`: behind uvicorn, on loopback."""
    return _serving


@pytest.fixture(scope="session")
def live(make_engine, checkpoint) -> Iterator[str]:
    """The URL of a server with 64 rows that lives as long as the tests do."""
    service = CompletionService(make_engine(max_batch=64), "tiny", aliases=[str(checkpoint)])
    with _serving(service) as url:
        yield url


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


@pytest.fixture
def post_bytes(call) -> Callable[..., httpx.Response]:
    """`post_bytes(content, content_type="application/json")`: one POST /v1/completions."""

    def send(content: str | bytes, content_type: str = "application/json") -> httpx.Response:
        headers = {"Content-Type": content_type}
        return call("POST", "/v1/completions", content=content, headers=headers)

    return send


@pytest.fixture
def alone(run_alone, checkpoint) -> Callable[..., Completion]:
    """`alone(prompt, gates=None, **sampling)`: the completion of a lone run of the engine."""
    return run_alone(checkpoint)


@pytest.fixture
def run_alone(make_engine, tokenizer) -> Callable[[Path], Callable[..., Completion]]:
    """`run_alone(path)(prompt, gates=None, **sampling)`: the same of another checkpoint."""

    def of(path: Path) -> Callable[..., Completion]:
        engine = make_engine(path, max_batch=1)
        return partial(_run_alone, engine, tokenizer)

    return of


def _run_alone(
    engine: EngineBase,
    tokenizer: Tokenizer,
    prompt: str | list[int],
    gates: Any = None,
    **sampling: Any,
) -> Completion:
    tokens = tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt
    request = Request(tokens, gates=gates, sampling=SamplingParams(**sampling))
    return engine.generate([request])[0]


def _error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) < 2100
    return error


@pytest.fixture(scope="session")
def error_of() -> Callable[[httpx.Response, int], dict[str, Any]]:
    """`error_of(response, status)`: what its envelope holds, once both were checked."""
    return _error_of


def _events_of(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    return [entry if entry == "[DONE]" else json.loads(entry) for entry in data]


@pytest.fixture(scope="session")
def events_of() -> Callable[[httpx.Response], list[Any]]:
    """`events_of(response)`: what the `data:` lines of a stream hold."""
    return _events_of
