"""Load on a server on this machine, and what HTTP adds to the time to the first token.

- `load`: a bounded number of streamed requests at a bounded concurrency
- `overhead`: one request at a time, in turn through HTTP and in an engine of this process, the same
  prompts; the difference of the medians is what Ray Serve and HTTP add
- it refuses any host but loopback
- the last line of the output is everything as one JSON object

    python -m benchmarks.serve                          # starts `python -m serve` by itself
    python -m benchmarks.serve --url http://127.0.0.1:8000 --checkpoint runs/demo/mhc
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch

if not __package__:  # run as a file: Python looks beside it, not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.mhc import machine_facts
from benchmarks.timing import quantile
from mhc_model import Decoder, Engine, MHCConfig, ModelConfig, Request, SamplingParams
from mhc_model.checkpoint import find_checkpoint, save_checkpoint
from mhc_model.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
MAX_REQUESTS = 100_000
MAX_CONCURRENCY = 1024
MAX_SECONDS = 3600.0
WARM_UP = 3
START_S = 180.0
TEXT = ["Question: Tom has 7 apples and buys 5 more. How many has he now?\nAnswer: 7 + 5 = 12\n"]


@dataclass(frozen=True)
class Sample:
    """One request as its client saw it; seconds."""

    status: str  # "200", another HTTP status, or the name of what went wrong
    ttft: float = 0.0
    total: float = 0.0
    tokens: int = 0

    @property
    def tpot(self) -> float | None:
        return (self.total - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.serve", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--url", help="of a server on loopback; none starts one")
    add("--checkpoint", help="what it serves; none makes a random model (needs no --url)")
    add("--requests", type=int, default=128, help="of the load; 0 leaves it out")
    add("--concurrency", type=int, default=16, help="of the load")
    add("--seconds", type=float, default=120.0, help="after which no request is begun")
    add("--pairs", type=int, default=40, help="requests of the overhead, each way; 0 leaves it out")
    add("--prompt-tokens", type=int, default=64)
    add("--max-tokens", type=int, default=64)
    add("--seed", type=int, default=0, help="of the prompts")
    options = parser.parse_args(argv)
    limits = (
        ("requests", 0, MAX_REQUESTS),
        ("concurrency", 1, MAX_CONCURRENCY),
        ("seconds", 0.1, MAX_SECONDS),
        ("pairs", 0, MAX_REQUESTS),
        ("prompt_tokens", 1, 1 << 20),
        ("max_tokens", 1, 1 << 20),
    )
    for name, least, most in limits:
        if not least <= getattr(options, name) <= most:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} {getattr(options, name)}: allowed are {least} to {most}")
    if options.url is not None:
        if not is_loopback(options.url):
            parser.error(f"--url {options.url}: only a server on loopback, such as 127.0.0.1")
        if options.checkpoint is None and options.pairs:
            parser.error("--url needs --checkpoint for the engine to compare with, or --pairs 0")
    return options


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine by a loopback address, or `localhost`."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def random_checkpoint(directory: Path) -> Path:
    """A small mHC model of random weights; what it says does not matter here."""
    tokenizer = Tokenizer.train(TEXT * 8, 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        n_layers=4,
        n_heads=4,
        d_model=128,
        max_seq_len=2048,
        mhc=MHCConfig(),
    )
    save_checkpoint(directory, Decoder(config), tokenizer)
    return directory


@contextlib.contextmanager
def running_server(checkpoint: Path) -> Iterator[str]:
    """`python -m serve` on a free port of loopback; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="mhc-") as ray_directory:
        command = [sys.executable, "-m", "serve", "--checkpoint", str(checkpoint), "--port"]
        command += [str(port), "--ray.temp-dir", ray_directory, "--access-log", "off"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            # Ray may print before it.
            if not any(f"127.0.0.1:{port}" in line for line in process.stdout):
                raise SystemExit(f"the server did not start; it ended with {process.wait()}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_S)


class Prompts:
    """Random token ids, no two prompts alike: nothing comes from a prefix cache."""

    def __init__(self, options: argparse.Namespace, vocabulary: int) -> None:
        self._random = random.Random(options.seed)
        self._length = options.prompt_tokens
        self._vocabulary = vocabulary

    def draw(self) -> list[int]:
        return [self._random.randrange(self._vocabulary) for _ in range(self._length)]


async def one_request(client: httpx.AsyncClient, prompt: list[int], max_tokens: int) -> Sample:
    """Streams one completion."""
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, last = time.perf_counter(), None, ""
    usage: dict[str, Any] = {}
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                return Sample(str(response.status_code))
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                first = first or time.perf_counter()
                last = line
                if '"usage"' in line:
                    usage = json.loads(line.removeprefix("data: ")).get("usage") or usage
    except httpx.HTTPError as error:
        return Sample(type(error).__name__)
    if last != "data: [DONE]" or first is None:
        return Sample("broken off")
    total = time.perf_counter() - begun
    return Sample("200", first - begun, total, usage.get("completion_tokens", 0))


async def put_load(client: httpx.AsyncClient, options: argparse.Namespace, prompts: Prompts):
    """All requests of the load, `concurrency` at a time."""
    waiting = [prompts.draw() for _ in range(options.requests)]
    samples: list[Sample] = []
    begun = time.perf_counter()

    async def work() -> None:
        while waiting and time.perf_counter() - begun < options.seconds:
            samples.append(await one_request(client, waiting.pop(), options.max_tokens))

    await asyncio.gather(*(work() for _ in range(options.concurrency)))
    return samples, time.perf_counter() - begun


def in_process(engine: Engine, prompt: list[int], max_tokens: int) -> float:
    """Seconds to the first token of one request in this process; the request is then dropped."""
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    begun = time.perf_counter()
    request = engine.add(Request(prompt, sampling=sampling, stream=True))
    first = None
    while first is None:
        done = engine.step()
        if done or engine.take_deltas():
            first = time.perf_counter() - begun
    engine.cancel(request)
    while engine.has_work:
        engine.step()
    engine.take_deltas()
    return first


async def measure_overhead(
    client: httpx.AsyncClient, options: argparse.Namespace, prompts: Prompts, engine: Engine
) -> dict[str, Any]:
    """Times to the first token, in turn through HTTP and in this process."""
    http, own = [], []
    for measured in range(-WARM_UP, options.pairs):
        prompt = prompts.draw()
        # Few tokens: only the first counts, and the server must be idle for the other side.
        sample = await one_request(client, prompt, 4)
        if sample.status != "200":
            raise SystemExit(f"the server answered {sample.status}")
        seconds = in_process(engine, prompt, 4)
        if measured >= 0:
            http.append(1e3 * sample.ttft)
            own.append(1e3 * seconds)
    report = {
        "http_ttft_ms": statistics.median(http),
        "engine_ttft_ms": statistics.median(own),
        "overhead_ms": statistics.median(http) - statistics.median(own),
        "http_ttft_min_ms": min(http),  # on a busy machine the steadier figures
        "engine_ttft_min_ms": min(own),
        "http_ttft_p95_ms": quantile(http, 0.95),
        "engine_ttft_p95_ms": quantile(own, 0.95),
    }
    print(
        f"time to the first token at concurrency 1, median of {options.pairs}: "
        f"{report['http_ttft_ms']:.2f} ms through HTTP, {report['engine_ttft_ms']:.2f} ms in the "
        f"engine, so HTTP adds {report['overhead_ms']:.2f} ms"
    )
    return report


def summarize_load(samples: list[Sample], seconds: float) -> dict[str, Any]:
    good = [sample for sample in samples if sample.status == "200"]
    errors = Counter(sample.status for sample in samples if sample.status != "200")
    report: dict[str, Any] = {
        "requests": len(samples),
        "seconds": seconds,
        "errors": dict(errors),
        "tokens_per_s": sum(sample.tokens for sample in good) / seconds,
        "requests_per_s": len(good) / seconds,
    }
    series = {
        "ttft_ms": [1e3 * sample.ttft for sample in good],
        "tpot_ms": [1e3 * sample.tpot for sample in good if sample.tpot is not None],
        "total_ms": [1e3 * sample.total for sample in good],
    }
    for name, values in series.items():
        for place in (50, 95):
            report[f"{name}_p{place}"] = quantile(values, place / 100) if values else None
    return report


def print_load(report: dict[str, Any], concurrency: int) -> None:
    print(
        f"{report['requests']} requests at concurrency {concurrency} in {report['seconds']:.1f} s: "
        f"{report['tokens_per_s']:.0f} tokens/s, {report['requests_per_s']:.1f} requests/s, "
        f"errors {report['errors'] or 'none'}"
    )
    for name in ("ttft_ms", "tpot_ms", "total_ms"):
        if report[f"{name}_p50"] is not None:
            print(f"  {name:9} p50 {report[f'{name}_p50']:9.2f}  p95 {report[f'{name}_p95']:9.2f}")


async def measure(url: str, checkpoint: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    key = os.environ.get("MHC_API_KEYS", "").replace(",", " ").split()
    headers = {"Authorization": f"Bearer {key[0]}"} if key else {}
    limits = httpx.Limits(max_connections=options.concurrency)
    report: dict[str, Any] = {}
    # trust_env: a proxy of the environment would take the requests off this machine.
    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=600.0, trust_env=False
    ) as client:
        answer = await client.get("/v1/models")
        answer.raise_for_status()
        prompts = Prompts(options, 256)
        if options.pairs and checkpoint is not None:
            torch.set_num_threads(1)  # as many as a replica of one CPU has
            engine = Engine.from_checkpoint(checkpoint, device="cpu")
            report["overhead"] = await measure_overhead(client, options, prompts, engine)
        if options.requests:
            samples, seconds = await put_load(client, options, prompts)
            report["load"] = summarize_load(samples, seconds)
            print_load(report["load"], options.concurrency)
    return report


def main(argv: list[str] | None = None) -> None:
    options = parse_options(argv)
    report: dict[str, Any] = {"options": vars(options), "machine": machine_facts()}
    with tempfile.TemporaryDirectory(prefix="mhc-") as directory:
        if options.checkpoint is not None:
            checkpoint = find_checkpoint(options.checkpoint)
        else:
            checkpoint = None if options.url else random_checkpoint(Path(directory) / "model")
        server = contextlib.nullcontext(options.url) if options.url else running_server(checkpoint)
        with server as url:
            report |= asyncio.run(measure(url, checkpoint, options))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
