"""Servers with slow and failing engines, and a browser that shows their page."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from mhc_model import Engine, EngineError
from serve.app import create_app
from serve.service import CompletionService

if TYPE_CHECKING:  # it needs selenium, which may be missing
    from playground_page import Page


class SlowEngine(Engine):
    """Takes its time, as a large model does: a stream can be watched and stopped."""

    def step(self):
        time.sleep(0.02)
        return super().step()


class FailingEngine(SlowEngine):
    """Fails in the middle of an answer."""

    steps = 0

    def step(self):
        self.steps += 1
        if self.steps > 8:
            raise EngineError("out of order")
        return super().step()


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., str]]:
    """`start_server(checkpoint, fails=False, policy=None, **arguments of create_app)`: its address.

    The engine is slow; one that fails does so in the middle of an answer.
    """
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(path: Path, fails: bool = False, policy: Any = None, **arguments: Any) -> str:
        kind = FailingEngine if fails else SlowEngine
        engine = kind.from_checkpoint(path, max_batch=4, device="cpu")
        app = create_app(CompletionService(engine, path.name, policy=policy), **arguments)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join()


@pytest.fixture(scope="module")
def address(start_server, checkpoint) -> str:
    return start_server(checkpoint)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    from playground_page import start_browser

    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    driver = start_browser(chromium, chromedriver, tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    from playground_page import Page

    page = Page(browser, address)
    page.open()
    yield page
    page.run("sessionStorage.clear()")
    assert page.complaints() == []
