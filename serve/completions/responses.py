"""Completions and deltas of the engine, written as OpenAI's responses and stream chunks."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from mhc_model.engine import Completion, Delta, PromptLogprobs
from mhc_model.tokenizer import Tokenizer
from serve.completions.batcher import Event
from serve.completions.chat_schemas import ChatChoice, ChatRequest, ChatResponse
from serve.completions.logprobs import LegacyLogprobs, LogprobWriter, TokenNames, joined
from serve.completions.prepare import Prepared
from serve.completions.schemas import (
    Choice,
    CompletionRequest,
    CompletionResponse,
    GenerationRequest,
    Logprobs,
    PromptEntries,
    PromptLogprob,
    PromptTokensDetails,
    Usage,
)
from serve.errors import unavailable

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class ModelIdentity:
    """What responses say of the model.

    Attributes:
        model: the name in the API.
        checkpoint: content hash of the weights.
        tokenizer: its own.
        names: of its tokens.
    """

    model: str
    checkpoint: str
    tokenizer: Tokenizer
    names: TokenNames


class ResponseWriter(ABC):
    """Writes the response to one request: whole, or chunk by chunk.

    A choice's index is the prompt's times n plus the sample's.
    """

    object: str
    chunk_object: str
    ids_beside_choices = False
    """Whether a prompt's token ids stand in the response, not in its choices."""

    def __init__(
        self, identity: ModelIdentity, body: GenerationRequest, prepared: Prepared
    ) -> None:
        self._identity = identity
        self._prepared = prepared
        self._n = body.n
        self._best_of = body.samples
        self._gives_ids = body.return_token_ids
        self._prompt_logprobs = body.prompt_logprobs
        self._prompts = {request.id: i for i, request in enumerate(prepared.requests)}
        self._ended: list[Completion] = []
        self._begun: set[int] = set()
        self._includes_usage = body.includes_usage
        self._envelope: dict[str, Any] = {
            "id": f"{body.kind}-{uuid.uuid4().hex}",
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": identity.model,
            **prepared.gates.labels,
            "checkpoint": identity.checkpoint,
        }
        # Everything but the choices is the same in each chunk: it is written once.
        head = json.dumps(self._envelope)
        self._head = f"data: {head[:-1]}, "
        self._tail = ', "usage": null}\n\n' if self._includes_usage else "}\n\n"

    def response(self, completions: Sequence[Completion]) -> bytes:
        """The whole response as JSON.

        Raises:
            APIError: 503 if the engine gave up a sample.
        """
        self._ended = list(completions)
        envelope = {
            **self._envelope,
            "object": self.object,
            **self._prepared.gates.common(),
            "usage": self._usage(),
        }
        ordered = sorted(self._chosen(completions), key=self._index)
        return self._whole(envelope, ordered).model_dump_json().encode()

    def chunks(self, events: Sequence[Event]) -> str:
        """Server-sent events of what came: deltas, each before the completion that ends it.

        Raises:
            APIError: 503 if the engine gave up a sample.
        """
        ending = {self._index(event) for event in events if isinstance(event, Completion)}
        lines: list[str] = []
        for event in events:
            index = self._index(event)
            if index not in self._begun:
                self._begun.add(index)
                lines.append(self._chunk(self._first(index)))
            if isinstance(event, Completion):
                self._ended.append(event)
                lines.append(self._chunk(self._last(index, _reason(event))))
            else:
                lines += map(self._chunk, self._gained(index, event, index in ending))
        return "".join(lines)

    def end(self) -> str:
        """The events that end a stream."""
        if not self._includes_usage:
            return DONE
        usage = self._usage().model_dump_json()
        return f'{self._head}"choices": [], "usage": {usage}}}\n\n{DONE}'

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache had, of the samples that have ended."""
        return sum(done.cached_tokens for done in self._ended if done.index == 0)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the samples that have ended."""
        return sum(len(done.tokens) for done in self._ended)

    def _usage(self) -> Usage:
        prompt, completion = self._prepared.prompt_tokens, self.completion_tokens
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.cached_tokens),
        )

    def _chosen(self, completions: Sequence[Completion]) -> Sequence[Completion]:
        """The n best samples of each prompt, the best first, where more than n were made."""
        if self._best_of == self._n:
            return completions
        chosen = []
        for request in self._prepared.requests:
            own = [done for done in completions if done.request_id == request.id]
            best = sorted(own, key=_mean_logprob, reverse=True)[: self._n]
            chosen += [dataclasses.replace(done, index=i) for i, done in enumerate(best)]
        return chosen

    def _prompt_ids(self, index: int) -> list[int] | None:
        """Of a choice's prompt, where asked for."""
        if not self._gives_ids:
            return None
        return list(self._prepared.requests[index // self._n].prompt)

    def _ids(self, gained: Completion | Delta) -> list[int] | None:
        return list(gained.tokens) if self._gives_ids else None

    def _scored(self, index: int, done: Completion) -> PromptEntries | None:
        """`prompt_logprobs` of a choice."""
        prompt, top = done.prompt_logprobs, self._prompt_logprobs
        if prompt is None or top is None:
            return None
        tokens = self._prepared.requests[index // self._n].prompt
        entries: PromptEntries = []
        for place, (token, logprob) in enumerate(zip(tokens, prompt.logprobs, strict=True)):
            if logprob is None:
                entries.append(None)
                continue
            likeliest = prompt.top[place][:top] if prompt.top else ()
            found: dict[int, tuple[float, int | None]] = {
                other: (value, rank) for rank, (other, value) in enumerate(likeliest, start=1)
            }
            found[token] = (logprob, prompt.ranks[place] if prompt.ranks else None)
            entries.append(
                {
                    other: PromptLogprob(
                        logprob=value, rank=rank, decoded_token=self._identity.names.names[other]
                    )
                    for other, (value, rank) in found.items()
                }
            )
        return entries

    def _index(self, event: Event) -> int:
        return self._prompts[event.request_id] * self._n + event.index

    def _gates(self, index: int) -> dict[str, list[float] | None]:
        return self._prepared.gates.numbers(index // self._n)

    def _chunk(self, choice: dict[str, Any]) -> str:
        more = ""
        if "prompt_token_ids" in choice and self.ids_beside_choices:
            more = f', "prompt_token_ids": {json.dumps(choice.pop("prompt_token_ids"))}'
        return f'{self._head}"choices": [{json.dumps(choice)}]{more}{self._tail}'

    @abstractmethod
    def _whole(self, envelope: dict[str, Any], completions: Sequence[Completion]) -> BaseModel:
        """The response; `completions` are ordered by choice."""

    @abstractmethod
    def _first(self, index: int) -> dict[str, Any]:
        """The choice that begins a stream."""

    @abstractmethod
    def _gained(self, index: int, delta: Delta, final: bool) -> list[dict[str, Any]]:
        """Choices for a delta, none where there is nothing to say yet.

        Args:
            index: of the choice.
            delta: what it gained.
            final: it is the last one.
        """

    @abstractmethod
    def _last(self, index: int, reason: str) -> dict[str, Any]:
        """The choice that ends a stream."""


class CompletionWriter(ResponseWriter):
    """For /v1/completions."""

    object = chunk_object = "text_completion"

    def __init__(
        self, identity: ModelIdentity, body: CompletionRequest, prepared: Prepared
    ) -> None:
        super().__init__(identity, body, prepared)
        self._echoes = body.echo
        self._logprobs = body.logprobs
        self._writers: dict[int, LogprobWriter] = {}

    def _whole(self, envelope: dict[str, Any], completions: Sequence[Completion]) -> BaseModel:
        choices = []
        for index, done in enumerate(completions):
            written = self._written(index, done, done.prompt_logprobs, final=True)
            choices.append(
                Choice(
                    index=index,
                    text=self._echo(index) + (done.text or ""),
                    finish_reason=_reason(done),
                    logprobs=None if written is None else Logprobs(**written),
                    **self._gates(index),
                    token_ids=self._ids(done),
                    prompt_token_ids=self._prompt_ids(index),
                    prompt_logprobs=self._scored(index, done),
                )
            )
        return CompletionResponse(**envelope, choices=choices)

    def _first(self, index: int) -> dict[str, Any]:
        # With logprobs the prompt's text comes with them, in the first delta.
        text = "" if self._logprobs is not None else self._echo(index)
        prompt = {"prompt_token_ids": self._prompt_ids(index)} if self._gives_ids else {}
        return {**_choice(index, text, None), **self._gates(index), **prompt}

    def _gained(self, index: int, delta: Delta, final: bool) -> list[dict[str, Any]]:
        text = delta.text
        if delta.prompt is not None and self._logprobs is not None:
            text = self._echo(index) + text
        written = self._written(index, delta, delta.prompt, final)
        ids = {"token_ids": self._ids(delta)} if self._gives_ids else {}
        if not text and not (written and written["tokens"]) and not ids.get("token_ids"):
            return []
        return [{**_choice(index, text, written), **ids}]

    def _last(self, index: int, reason: str) -> dict[str, Any]:
        return {**_choice(index, "", None), "finish_reason": reason}

    def _echo(self, index: int) -> str:
        return self._identity.tokenizer.decode(self._echoed(index)) if self._echoes else ""

    def _echoed(self, index: int) -> Sequence[int]:
        """The caller's own tokens."""
        prompt = index // self._n
        return self._prepared.requests[prompt].prompt[self._prepared.starts[prompt] :]

    def _written(
        self, index: int, gained: Completion | Delta, prompt: PromptLogprobs | None, final: bool
    ) -> LegacyLogprobs | None:
        if self._logprobs is None:
            return None
        writer = self._writers.get(index)
        if writer is None:
            writer = self._writers[index] = LogprobWriter(self._identity.names, self._logprobs > 0)
        most, echoed = self._logprobs, None
        if prompt is not None and self._echoes:
            start = self._prepared.starts[index // self._n]
            top = [likeliest[:most] for likeliest in prompt.top[start:]]
            echoed = writer.write(self._echoed(index), prompt.logprobs[start:], top, final=True)
        top = [likeliest[:most] for likeliest in gained.top_logprobs or ()]
        written = writer.write(gained.tokens, gained.logprobs or (), top, final)
        return written if echoed is None else joined(echoed, written)


class ChatWriter(ResponseWriter):
    """For /v1/chat/completions."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    ids_beside_choices = True

    def __init__(self, identity: ModelIdentity, body: ChatRequest, prepared: Prepared) -> None:
        super().__init__(identity, body, prepared)
        self._logprobs = body.logprobs
        self._top = body.top_logprobs or 0
        self._spoken: set[int] = set()

    def _whole(self, envelope: dict[str, Any], completions: Sequence[Completion]) -> BaseModel:
        choices = [
            ChatChoice.model_validate(
                {
                    "index": index,
                    "message": {"content": self._said(index, done.text or "")},
                    "finish_reason": _reason(done),
                    "logprobs": self._content(done),
                    **self._gates(index),
                    "token_ids": self._ids(done),
                }
            )
            for index, done in enumerate(completions)
        ]
        return ChatResponse(
            **envelope,
            choices=choices,
            prompt_token_ids=self._prompt_ids(0),
            prompt_logprobs=self._scored(0, completions[0]),
        )

    def _said(self, index: int, text: str) -> str:
        """A choice's next text, at first without the space that belongs to the template."""
        if not text or index in self._spoken:
            return text
        self._spoken.add(index)
        return text.removeprefix(" ") if self._prepared.opens_text else text

    def _first(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        prompt = {"prompt_token_ids": self._prompt_ids(index)} if self._gives_ids else {}
        return {**_chat_choice(index, delta, None), **self._gates(index), **prompt}

    def _gained(self, index: int, delta: Delta, final: bool) -> list[dict[str, Any]]:
        logprobs = self._content(delta)
        text = self._said(index, delta.text)
        ids = {"token_ids": self._ids(delta)} if self._gives_ids else {}
        if not text and not (logprobs and logprobs["content"]) and not ids.get("token_ids"):
            return []
        return [{**_chat_choice(index, {"content": text}, logprobs), **ids}]

    def _last(self, index: int, reason: str) -> dict[str, Any]:
        return {**_chat_choice(index, {}, None), "finish_reason": reason}

    def _content(self, gained: Completion | Delta) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        names = self._identity.names
        top = [likeliest[: self._top] for likeliest in gained.top_logprobs or ()]
        return {"content": names.chat(gained.tokens, gained.logprobs or (), top)}


def _choice(index: int, text: str, logprobs: LegacyLogprobs | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}


def _chat_choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _mean_logprob(completion: Completion) -> float:
    """OpenAI's measure of the best: log-probability per token; nothing said is the worst."""
    logprobs = completion.logprobs or ()
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


def _reason(completion: Completion) -> Any:
    if completion.finish_reason == "cancelled":
        raise unavailable("the engine gave up the completion; try again")
    return completion.finish_reason
