"""`python -m serve` as a platform runs it: real Ray Serve, real HTTP, keys, faults, signals.

One server for the whole module: the tests run in order, and the last one stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mhc_model import Engine, Request, SamplingParams, save_checkpoint
from mhc_model.checkpoint import checkpoint_hash
from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-the-test"
HEADERS = {"Authorization": f"Bearer {KEY}"}
CONTEXT = 4096
TIMEOUT_S = 60
DRAIN_S = 40
HEALTH_S = 3
BODY = {"prompt": "Question: Tom", "max_tokens": 12, "temperature": 0}
REPLICA = "ray::ServeReplica"


class Server:
    """The command in a session of its own."""

    def __init__(self, checkpoint: Path, arguments: list[str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._directory = tempfile.mkdtemp(prefix="mhc-")  # short: Ray's sockets lie in it
        command = [sys.executable, "-m", "serve", "--checkpoint", str(checkpoint), *arguments]
        command += ["--port", str(port), "--ray.temp-dir", self._directory, "--ray.num-cpus", "4"]
        command += ["--access-log", str(log)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1", "MHC_API_KEYS": KEY},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def announces(self) -> bool:
        """Waits for the line with the address; Ray may print before it."""
        assert self.process.stdout is not None
        return any(self.url in line for line in self.process.stdout)

    def members(self) -> dict[int, str]:
        """Command lines of the live processes of its session."""
        members = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                # pid (name) state ppid pgrp session ...; the name may contain spaces.
                state, _, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(owner) == self.process.pid and state != "Z":
                    members[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
        return members

    def end(self) -> None:
        """Ends whatever is left of it."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer, tiny_model) -> Path:
    """The tiny model with a long context, so that requests can take seconds."""
    directory = tmp_path_factory.mktemp("long") / "tiny"
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=CONTEXT)
    save_checkpoint(directory, model, tokenizer)
    return directory


@pytest.fixture(scope="module")
def engine(checkpoint) -> Engine:
    return Engine.from_checkpoint(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def server(checkpoint, engine, tmp_path_factory) -> Iterator[Server]:
    policy = tmp_path_factory.mktemp("policy") / "policy"
    config = PolicyConfig(
        action_space="per_layer",
        n_layers=engine.model.config.n_layers,
        observation_dim=engine.model.config.d_model,
        checkpoint_hash=checkpoint_hash(checkpoint),
    )
    GatePolicy(config).save(policy)
    arguments = ["--policy", str(policy), "--replicas", "2", "--max-batch", "32"]
    arguments += ["--health-check-timeout-s", str(HEALTH_S)]
    arguments += ["--request-timeout-s", str(TIMEOUT_S), "--drain-s", str(DRAIN_S)]
    server = Server(checkpoint, arguments, tmp_path_factory.mktemp("log") / "access.log")
    try:
        assert server.announces(), f"ended with {server.process.wait()}"
        yield server
    finally:
        server.end()


@pytest.fixture
def client(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S, headers=HEADERS) as client:
        yield client


def gauges(text: str, name: str) -> dict[str, float]:
    """Values of a metric by replica."""
    return {
        sample.labels["replica"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_it_answers_as_the_engine_does(client, engine):
    prompt = engine.tokenizer.encode(BODY["prompt"], bos=True)
    texts = []
    for gates in (0.0, [1.0, 0.5, 0.0]):
        answer = client.post("/v1/completions", json={**BODY, "gates": gates}).json()
        request = Request(prompt, gates=gates, sampling=SamplingParams(max_tokens=12))
        assert answer["choices"][0]["text"] == engine.generate([request])[0].text
        texts.append(answer["choices"][0]["text"])
    assert texts[0] != texts[1]
    answer = client.post("/v1/completions", json={**BODY, "gates": "policy"}).json()
    assert answer["gates_source"] == "policy"
    assert client.get("/health").json()["checkpoint"] == engine.checkpoint_hash
    assert client.get("/v1/gates").json()["n_gates"] == 6
    answer = client.post("/v1/routing", json={"prompt": BODY["prompt"], "gates": 0.5})
    assert len(answer.json()["sublayers"]) == 6


def test_small_routes_pass_through_the_proxy(client):
    """HEAD, and what balancers and clients of other servers ask for."""
    for path in ("/health", "/ping", "/v1/models"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
    assert client.get("/version").json()["version"]
    ids = client.post("/tokenize", json={"prompt": "Question:"}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "Question:"}
    body = {**BODY, "structured_outputs": {"regex": "[0-9]{4}"}, "return_token_ids": True}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"].isdigit()
    assert len(choice["text"]) == 4


def test_mistakes_and_ids_pass_through_the_proxy(client):
    json_type = {"Content-Type": "application/json"}
    mistakes = [
        (client.post("/v1/completions", json={**BODY, "gates": [0.5, 2]}), 400),
        (client.post("/v1/completions", json={**BODY, "max_tokens": 10_000}), 400),
        (client.post("/v1/completions", content=b'{"prompt": NaN}', headers=json_type), 400),
        (client.post("/v1/completions", content=b"\xff\xfe", headers=json_type), 400),
        (client.post("/v1/completions", content=b"a" * (10 << 20), headers=json_type), 413),
        (client.get("/v1/nothing"), 404),
        (client.get("/-/routes"), 404),
        (client.put("/v1/completions"), 405),
    ]
    for response, status in mistakes:
        assert response.status_code == status
        assert response.json()["error"]["message"]
        assert len(response.headers.get_list("x-request-id")) == 1
    answer = client.get("/health", headers={"X-Request-ID": "mine 1"})
    assert answer.headers.get_list("x-request-id") == ["mine 1"]
    answer = client.get("/health", headers={"X-Request-ID": "a" * 129})
    assert answer.headers.get_list("x-request-id") != ["a" * 129]


def test_nothing_but_the_open_routes_answers_without_a_key(server, client):
    paths = [
        path.replace("{model}", "tiny") for path in client.get("/openapi.json").json()["paths"]
    ]
    assert {"/v1/completions", "/metrics", "/v1/routing"} <= set(paths)
    with httpx.Client(base_url=server.url) as stranger:
        for path in [*paths, "/docs", "/openapi.json", "/-/routes", "/-/healthz", "/nothing"]:
            answer = stranger.get(path)
            expected = 200 if path in ("/health", "/ready") else 401
            if path != "/":  # the page's own test tells of it
                assert answer.status_code == expected, path


def test_clients_that_leave_free_their_rows(client, server):
    """Fifty streams closed mid-way: no replica holds a row two seconds later."""

    async def read_some(http: httpx.AsyncClient, seed: int) -> None:
        body = {**BODY, "max_tokens": 4000, "stream": True, "ignore_eos": True, "seed": seed}
        async with http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    return

    async def all_of_them() -> float:
        limits = httpx.Limits(max_connections=60)
        options = {"base_url": server.url, "headers": HEADERS, "limits": limits}
        async with httpx.AsyncClient(timeout=TIMEOUT_S, **options) as http:
            await asyncio.gather(*(read_some(http, seed) for seed in range(50)))
        return time.monotonic()

    before = sum(gauges(client.get("/metrics").text, "mhc_samples_cancelled_total").values())
    left = asyncio.run(all_of_them())
    while True:
        text = client.get("/metrics").text
        names = ("mhc_rows_decoding", "mhc_rows_prefilling", "mhc_samples_pending")
        busy = sum(value for name in names for value in gauges(text, name).values())
        if busy == 0:
            break
        assert time.monotonic() - left < 2, text
    assert len(gauges(text, "mhc_rows_decoding")) == 2  # one scrape tells of both replicas
    cancelled = sum(gauges(text, "mhc_samples_cancelled_total").values()) - before
    assert cancelled > 40  # of 50; a few may have been at their end


def outcome(response: httpx.Response) -> str:
    """What a request under which replicas died came to; anything else is a failed test."""
    if response.status_code == 503:
        assert response.json()["error"]["code"] == "engine_unavailable"
        assert int(response.headers["retry-after"]) >= 1
        return "refused"
    assert response.status_code == 200
    if not response.headers["content-type"].startswith("text/event-stream"):
        assert response.json()["usage"]["completion_tokens"] == 1000
        return "answered"
    events = [event for event in response.text.split("\n\n") if event]
    if events[-1] == "data: [DONE]":
        return "streamed"
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    return "broken off"


def test_killed_replicas_lose_nothing_and_come_back(server, client):
    """SIGKILL of both replicas under load: every request gets a whole answer or a clean error."""
    replicas = [pid for pid, line in server.members().items() if REPLICA in line]
    assert len(replicas) == 2

    async def under_load() -> list[str]:
        options = {"base_url": server.url, "headers": HEADERS, "timeout": TIMEOUT_S + 5}
        async with httpx.AsyncClient(**options) as http:
            body = {**BODY, "max_tokens": 1000, "ignore_eos": True}
            calls = [
                http.post("/v1/completions", json={**body, "seed": seed, "stream": seed % 3 == 0})
                for seed in range(24)
            ]
            tasks = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(1.0)
            assert not all(task.done() for task in tasks)
            for pid in replicas:
                os.kill(pid, signal.SIGKILL)
            return [outcome(response) for response in await asyncio.gather(*tasks)]

    killed = time.monotonic()
    counts = Counter(asyncio.run(under_load()))
    assert sum(counts.values()) == 24
    assert counts["answered"] == 16  # none of these had begun to answer: they were retried
    assert counts["broken off"] > 0
    assert client.post("/v1/completions", json=BODY).status_code == 200
    assert time.monotonic() - killed < 60
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert sum(line["outcome"] == "unavailable" for line in lines) == counts["broken off"]


def test_a_replica_that_stands_still_is_replaced(server, client):
    """SIGSTOP: it holds its connections and answers nothing."""

    def replicas() -> set[int]:
        return {pid for pid, line in server.members().items() if REPLICA in line}

    before = replicas()
    assert len(before) == 2
    stopped = min(before)
    os.kill(stopped, signal.SIGSTOP)
    since = time.monotonic()
    while stopped in replicas() or len(replicas()) < 2:
        # Three checks, their timeouts and the time to start; Serve's own timeouts take 90 s.
        assert time.monotonic() - since < 70
        time.sleep(0.2)
    while client.get("/health").status_code != 200:
        assert time.monotonic() - since < 120
        time.sleep(0.2)
    for _ in range(6):
        assert client.post("/v1/completions", json=BODY).status_code == 200


def test_a_stop_finishes_what_was_accepted(server, client):
    async def stop_under_load() -> list[httpx.Response]:
        options = {"base_url": server.url, "headers": HEADERS, "timeout": TIMEOUT_S}
        async with httpx.AsyncClient(**options) as http:
            body = {**BODY, "max_tokens": 1000, "ignore_eos": True}
            calls = [
                http.post("/v1/completions", json={**body, "seed": seed, "stream": seed % 2 == 0})
                for seed in range(6)
            ]
            tasks = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(1.0)
            server.process.send_signal(signal.SIGTERM)
            status = 200
            while status == 200 and not all(task.done() for task in tasks):
                late = await http.post("/v1/completions", json={**BODY, "max_tokens": 1})
                status = late.status_code
            assert status == 503
            assert late.json()["error"]["code"] == "engine_unavailable"
            assert not all(task.done() for task in tasks)
            return await asyncio.gather(*tasks)

    assert len(server.members()) > 4
    assert {outcome(response) for response in asyncio.run(stop_under_load())} == {
        "answered",
        "streamed",
    }
    assert server.process.wait(DRAIN_S) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 10
    while server.members() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.members() == {}
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {"ok", "refused", "cancelled", "unavailable"} <= {line["outcome"] for line in lines}
    assert KEY not in server.log.read_text()
