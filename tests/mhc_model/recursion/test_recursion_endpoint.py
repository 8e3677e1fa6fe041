"""A model behind HTTP, against a real server on loopback that misbehaves on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mhc_model.errors import CancelledError, EndpointError, SessionError
from mhc_model.recursion import CancelToken, EndpointModel, Session, SessionSettings, index_for


class Server(ThreadingHTTPServer):
    """Answers with the first word of each prompt; `script` holds what comes before that."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[object] = []  # (status, headers, body), or seconds to be silent
        self.seen: list[tuple[str, dict, dict]] = []
        self.usage = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        step = self.server.script.pop(0) if self.server.script else None
        if isinstance(step, float):
            time.sleep(step)
            step = None
        if step is None:
            # The last prompt comes first: clients must go by the index.
            choices = [
                {"index": number, "text": " " + prompt.split()[0] + "\n"}
                for number, prompt in enumerate(body["prompt"])
            ][::-1]
            answer = {"choices": choices}
            if self.server.usage:
                answer["usage"] = {"prompt_tokens": 10, "completion_tokens": 3}
            step = (200, {}, json.dumps(answer).encode())
        status, headers, content = step
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def generate(model: EndpointModel, prompts=("one 1", "two 2"), gates=None, cancel=None):
    return model.generate(prompts, 7, ("\n",), gates, cancel or CancelToken())


def test_a_batch_is_one_request_with_key_and_gates(server):
    model = EndpointModel(server.url + "/v1/", "served", api_key="secret")
    done = generate(model, gates=torch.tensor([0.0, 1.0]))
    assert [answer.text.strip() for answer in done] == ["one", "two"]
    # What the endpoint counted, spread over the answers.
    assert [answer.prompt_tokens for answer in done] == [5, 5]
    assert [answer.completion_tokens for answer in done] == [2, 1]
    ((path, headers, body),) = server.seen
    assert path == "/v1/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "served",
        "max_tokens": 7,
        "temperature": 0,
        "stop": ["\n"],
        "gates": [0.0, 1.0],
        "prompt": ["one 1", "two 2"],
    }


@pytest.mark.parametrize(
    ("gates", "sent"),
    [
        ("direct", "direct"),
        (0.25, 0.25),
        ({"prompt": "direct", "answer": torch.ones(2)}, {"prompt": "direct", "answer": [1.0, 1.0]}),
        ({"answer": 0.5}, {"answer": 0.5}),
        (torch.tensor([[0.0], [1.0]]), {"prompt": [0.0], "answer": [1.0]}),
    ],
)
def test_every_form_of_gates_is_sent_as_our_servers_take_it(server, gates, sent):
    generate(EndpointModel(server.url, "m"), gates=gates)
    assert server.seen[0][2]["gates"] == sent


def test_large_batches_are_split_and_stay_in_order(server):
    model = EndpointModel(server.url, "m", max_batch=2)
    done = generate(model, [f"{i} x" for i in range(5)])
    assert [answer.text.strip() for answer in done] == list("01234")
    assert [len(body["prompt"]) for _, _, body in server.seen] == [2, 2, 1]
    assert "gates" not in server.seen[0][2]
    assert "Authorization" not in server.seen[0][1]


def test_tokens_are_estimated_where_the_endpoint_does_not_count(server):
    server.usage = False
    done = generate(EndpointModel(server.url, "m"), ["naïve x"])
    assert done[0].prompt_tokens == len("naïve x".encode()) + 1
    assert EndpointModel(server.url, "m", characters_per_token=4).count_tokens("x" * 400) == 102


def test_what_may_pass_is_tried_again(server):
    busy = (429, {"Retry-After": "0"}, b"busy")
    server.script = [busy, (503, {"Retry-After": "soon"}, b""), busy]
    assert generate(EndpointModel(server.url, "m", retries=3))[0].text.strip() == "one"
    assert len(server.seen) == 4


def test_it_gives_up_after_its_retries(server):
    server.script = [(500, {}, b"broken")] * 5
    with pytest.raises(EndpointError, match="500: broken, 2 times"):
        generate(EndpointModel(server.url, "m", retries=1))
    assert len(server.seen) == 2


def test_a_silent_endpoint_times_out(server):
    server.script = [5.0]
    started = time.monotonic()
    with pytest.raises(EndpointError, match="cannot be reached"):
        generate(EndpointModel(server.url, "m", timeout_s=0.2, retries=0))
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ((401, {}, b'{"error": "no key"}'), "401.*no key"),
        ((404, {}, b"gone"), "404"),
        ((302, {"Location": "http://127.0.0.1:9/secret"}, b""), "302"),
        ((200, {}, b"<html>"), "did not answer with JSON"),
        ((200, {}, b"[" * 100_000), "did not answer with JSON"),
        ((200, {}, b"[]"), "one completion for each"),
        ((200, {}, b'{"choices": [{"index": 0, "text": "x"}]}'), "one completion for each"),
        ((200, {}, b'{"choices": [{"index": "a", "text": "x"}]}'), "one completion for each"),
        ((200, {}, b'{"choices": 5}'), "one completion for each"),
    ],
)
def test_what_will_not_pass_is_an_error_at_once(server, step, reason):
    server.script = [step]
    with pytest.raises(EndpointError, match=reason):
        generate(EndpointModel(server.url, "m"))
    assert len(server.seen) == 1


@pytest.mark.parametrize("script", [[5.0], [(503, {"Retry-After": "20"}, b"")]])
def test_cancelling_does_not_wait_for_the_endpoint(server, script):
    server.script = script
    cancel = CancelToken()
    threading.Timer(0.2, cancel.cancel).start()
    started = time.monotonic()
    with pytest.raises(CancelledError):
        generate(EndpointModel(server.url, "m"), cancel=cancel)
    assert time.monotonic() - started < 3


def test_nobody_there():
    with pytest.raises(EndpointError, match="cannot be reached"):
        generate(EndpointModel("http://127.0.0.1:9", "m", retries=0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "file:///etc/passwd"},
        {"url": "ftp://host"},
        {"url": "http://"},
        {"context": 0},
        {"timeout_s": 0},
        {"retries": -1},
        {"characters_per_token": 0},
    ],
)
def test_impossible_endpoints(arguments):
    with pytest.raises(SessionError):
        EndpointModel(**{"url": "http://host", "model": "m", **arguments})


def test_a_session_over_an_endpoint(server):
    model = EndpointModel(server.url, "m", context=900, characters_per_token=3)
    text = "Amber herons wade. " * 200 + "Rosamund hid the key. " + "Grey herons sleep. " * 200
    limits = SessionSettings.model_validate({"budget_tokens": 9000})
    session = Session(index_for(text, model, limits), model, limits)
    answer = session.ask("Where did Rosamund hide it?")
    assert answer.finish_reason == "answered"
    assert any("Rosamund" in prompt for _, _, body in server.seen for prompt in body["prompt"])
    assert session.usage.prompt_tokens == 10 * len(server.seen)
