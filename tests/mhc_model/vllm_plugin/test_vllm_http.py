"""vLLM's own server over one of our checkpoints: gates come as `vllm_xargs`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from vllm_engines import NEEDS_VLLM

from mhc_model import Engine, Request, SamplingParams, save_checkpoint
from mhc_model.tokenizer import Tokenizer

pytestmark = NEEDS_VLLM

START_S = 240
PROMPT = [5, 6, 7, 8] * 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_model) -> Path:
    directory = tmp_path_factory.mktemp("vllm-http") / "tiny"
    tokenizer = Tokenizer.train(["Question: Tom has 7 apples.\nAnswer: 7"] * 8, 300)
    model = tiny_model(
        vocab_size=tokenizer.vocab_size,
        max_seq_len=128,
        behaviours={"direct": {"gates": [0.0, 0.3]}, "worked": {"gates": [0.7, 1.0]}},
    )
    save_checkpoint(directory, model, tokenizer)
    return directory


@pytest.fixture(scope="module")
def url(checkpoint, tmp_path_factory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)),
        *("--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", "tiny", "--enforce-eager", "--max-num-seqs", "8"),
        *("--kv-cache-memory-bytes", "8000000", "--block-size", "32"),
    ]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not _answers(address):
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _complete(url: str, **fields) -> httpx.Response:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 0}
    return httpx.post(f"{url}/v1/completions", json={**body, **fields}, timeout=60)


def test_gates_over_http_are_those_of_our_engine(url, checkpoint):
    engine = Engine.from_checkpoint(checkpoint, device="cpu")
    given = [None, 0.0, 1.0, [0.25, 0.5, 1.0], [1, 0, 0.5, 0.5, 1, 0], "direct", "worked"]
    given += [{"prompt": "direct", "answer": "worked"}, {"prompt": [1, 0, 1]}, {"answer": 0.5}]
    sampling = SamplingParams(max_tokens=12, logprobs=True, ignore_eos=True)
    expected = engine.generate([Request(PROMPT, gates, sampling) for gates in given])
    assert len({completion.logprobs for completion in expected}) == len(given)
    for gates, wanted in zip(given, expected, strict=True):
        # vllm_xargs take no objects.
        sent = json.dumps(gates) if isinstance(gates, dict) else gates
        fields = {} if gates is None else {"vllm_xargs": {"gates": sent}}
        answer = _complete(url, **fields, ignore_eos=True).json()["choices"][0]
        assert answer["logprobs"]["token_logprobs"] == pytest.approx(wanted.logprobs, abs=1e-4)
        assert answer["text"] == wanted.text


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (1.5, "gate 0 is 1.5; allowed: 1 number (global)"),
        ([0.5] * 4, "4 gates given; allowed"),
        ("loud", "gates are 'loud'; the names of this model are learned, direct, worked"),
        ('{"prompt": "loud"}', "gates are 'loud'; the names of this model are"),
        ('{"reply": 0.5}', "gates have the keys reply; allowed: prompt, answer"),
        ('{"prompt": 0.5', "is not valid JSON"),
        ('{"prompt": ' * 9999, "is not valid JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_gates_are_a_400_and_the_server_goes_on(url, gates, message):
    refused = _complete(url, vllm_xargs={"gates": gates})
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]
    assert _complete(url).status_code == 200


def test_beam_search_takes_no_gates(url):
    """vLLM would go on with the learned ones and say nothing."""
    refused = _complete(url, vllm_xargs={"gates": 0.5}, use_beam_search=True, n=2)
    assert refused.status_code == 400
    assert "beam search takes no gates" in refused.json()["error"]["message"]
    assert _complete(url, use_beam_search=True, n=2).status_code == 200
