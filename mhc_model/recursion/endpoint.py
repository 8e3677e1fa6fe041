"""A model behind any OpenAI-compatible `/v1/completions`, with the standard library alone."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch

from mhc_model.errors import EndpointError, SessionError
from mhc_model.gates import PhaseGates
from mhc_model.recursion.model import CancelToken, Gates, Generated
from mhc_model.recursion.search import Embedder

MAX_RESPONSE = 32 << 20  # bytes
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_MAX_WAIT_S = 30.0
_POLL_S = 0.05


class EndpointModel:
    """Completions of a remote model. A batch is one request with a list of prompts."""

    embedder: Embedder | None = None  # completions give no vectors: search is lexical

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        context: int = 4096,
        timeout_s: float = 120.0,
        retries: int = 3,
        characters_per_token: float | None = None,
        max_batch: int = 64,
    ) -> None:
        """Names the endpoint; nothing is sent yet.

        Args:
            url: the base, with or without /v1, such as http://127.0.0.1:8000.
            model: its name there.
            api_key: sent as a bearer token.
            context: most tokens of a prompt and its completion together.
            timeout_s: for one answer.
            retries: further tries after a timeout, a lost connection, or a status that says to try
                again (408, 429, 500, 502, 503, 504), with growing waits or as Retry-After says.
            characters_per_token: how many at least; None counts each UTF-8 byte as a token, which
                no byte-level vocabulary exceeds but which overstates English about fourfold. The
                budget is charged with what the endpoint reports.
            max_batch: prompts in one request.

        Raises:
            SessionError: for a URL that is not http(s), or a number outside its range.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SessionError(f"endpoint {url!r:.200} is no http or https address")
        if context < 1 or timeout_s <= 0 or retries < 0 or max_batch < 1:
            raise SessionError(
                f"context {context}, timeout_s {timeout_s}, max_batch {max_batch} must be positive "
                f"and retries {retries} not negative"
            )
        if characters_per_token is not None and characters_per_token <= 0:
            raise SessionError(
                f"characters_per_token is {characters_per_token}; it must be above 0"
            )
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1/completions"
        self.model = model
        self.context = context
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._retries = retries
        self._characters = characters_per_token
        self._max_batch = max_batch
        self._opener = urllib.request.build_opener(_NoRedirect())

    def count_tokens(self, text: str) -> int:
        """An upper estimate; see `characters_per_token`."""
        if self._characters is None:
            return len(text.encode("utf-8", "replace")) + 1
        return int(len(text) / self._characters) + 2

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str],
        gates: Gates,
        cancel: CancelToken,
    ) -> list[Generated]:
        """See `LanguageModel.generate`; gates go along where given, if the endpoint has them.

        Raises:
            EndpointError: if it cannot be reached, refuses, or answers with something else.
        """
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stop": list(stop),
        }
        if gates is not None:
            fields["gates"] = _as_json(gates)
        done: list[Generated] = []
        for first in range(0, len(prompts), self._max_batch):
            part = list(prompts[first : first + self._max_batch])
            done += self._generated(part, self._post({**fields, "prompt": part}, cancel))
        return done

    def _generated(self, prompts: list[str], answer: Any) -> list[Generated]:
        """Texts of an answer by index. Tokens: the answer's usage, spread over its choices."""
        try:
            texts = {int(choice["index"]): str(choice["text"]) for choice in answer["choices"]}
            ordered = [texts[number] for number in range(len(prompts))]
            usage = answer.get("usage") or {}
            counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
            sums = [None if count is None else int(count) for count in counts]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise EndpointError(
                f"{self.url} did not answer with one completion for each of {len(prompts)} "
                f"prompts: {json.dumps(answer)[:200]}"
            ) from None
        columns = [
            list(map(self.count_tokens, own)) if total is None else _spread(total, len(prompts))
            for total, own in zip(sums, (prompts, ordered), strict=True)
        ]
        return [Generated(*row) for row in zip(ordered, *columns, strict=True)]

    def _post(self, fields: dict[str, Any], cancel: CancelToken) -> Any:
        body = json.dumps(fields).encode()
        for attempt in range(self._retries + 1):
            try:
                return _waiting(lambda: self._send(body), cancel)
            except _Retry as error:
                if attempt == self._retries:
                    raise EndpointError(f"{error}, {attempt + 1} times") from None
                wait = min(0.25 * 2**attempt if error.after is None else error.after, _MAX_WAIT_S)
                _sleep(wait, cancel)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _send(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        request = urllib.request.Request(self.url, body, headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                raw = response.read(MAX_RESPONSE + 1)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, urllib.error.URLError) as error:
            raise _Retry(f"{self.url} cannot be reached ({error})") from None
        if len(raw) > MAX_RESPONSE:
            raise EndpointError(f"{self.url} answered with more than {MAX_RESPONSE} bytes")
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise EndpointError(f"{self.url} did not answer with JSON: {raw[:200]!r}") from None

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        detail = error.read(500).decode("utf-8", "replace")
        message = f"{self.url} answered {error.code}: {detail}"
        if error.code not in _RETRIED:
            raise EndpointError(message) from None
        after = error.headers.get("Retry-After", "")
        raise _Retry(message, float(after) if after.isdigit() else None) from None


def _as_json(gates: Gates) -> Any:
    """As `gates` of a body; those of prompt and answer by name."""
    if isinstance(gates, Mapping):
        return {phase: _as_json(each) for phase, each in gates.items()}
    if isinstance(gates, torch.Tensor) and gates.ndim == 2:
        return dict(zip(PhaseGates._fields, gates.tolist(), strict=True))
    return gates.tolist() if isinstance(gates, torch.Tensor) else gates


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to a place that nobody allowed; it is an error as any other status."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Retry(Exception):
    """A failure that another try may mend."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def _spread(total: int, n: int) -> list[int]:
    """n whole numbers that differ by at most one and make `total`."""
    return [total // n + (number < total % n) for number in range(n)]


def _waiting(send: Any, cancel: CancelToken) -> Any:
    """What `send` returns, or CancelledError as soon as cancelled: the socket then ends alone."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((send(), None))
        except Exception as error:  # carried to the waiting thread, where it is raised
            outcome.extend((None, error))

    thread = threading.Thread(target=run, name="endpoint", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        cancel.check()
    value, error = outcome
    if error is not None:
        raise error
    return value


def _sleep(seconds: float, cancel: CancelToken) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        cancel.check()
        time.sleep(min(_POLL_S, max(0.0, until - time.monotonic())))
    cancel.check()
