"""Requests and responses of OpenAI's chat completions; see `serve.completions.schemas`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema, model_validator

from mhc_model.config import MAX_TOP_LOGPROBS
from serve.completions.schemas import (
    ANSWER_GATES,
    MAX_INTEGER,
    Body,
    GenerationRequest,
    GenerationResponse,
)
from serve.errors import field_error

MAX_MESSAGES = 1000

_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}


def _content(value: object) -> str:
    """A message's text; its parts, if it has several, on lines of their own."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "\n".join(part["text"] for part in value)
    raise ValueError(
        'must be a string or a list of parts {"type": "text", "text": "..."}; this model reads '
        "text only"
    )


def _is_text_part(part: object) -> bool:
    return (
        isinstance(part, dict)
        and part.keys() == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    )


Content = Annotated[
    str,
    PlainValidator(_content),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": _PART}]}
    ),
]


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="who speaks")
    content: Content = Field(description="text, or a list of text parts")
    name: str | None = Field(None, description="accepted; a chat template may use it")


class ResponseFormat(Body):
    """OpenAI's field; this server answers with text."""

    type: Literal["text"] = Field(description='only "text"')


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    kind: ClassVar[str] = "chatcmpl"

    messages: list[Message] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="the conversation so far"
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_INTEGER,
        description="most tokens to generate; none: what the context has room for",
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_INTEGER, description="the same under its newer name"
    )
    logprobs: bool = Field(False, description="each token's log-probability")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="this many of the likeliest tokens"
    )
    response_format: ResponseFormat | None = Field(None, description="only text")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise field_error("top_logprobs", "top_logprobs need logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise field_error(
                "max_tokens", "max_tokens and max_completion_tokens mean the same; give one"
            )
        return self


class TokenLogprob(BaseModel):
    """A token at one position."""

    token: str = Field(description="its text, or its bytes as \\x.. where they are no whole text")
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """The token that was generated, and the likeliest ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """One entry a generated token."""

    content: list[ChosenLogprob]


class AssistantMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None
    gates: list[float] | None = Field(description="the 2L gates of this answer")
    answer_gates: list[float] | None = Field(description=ANSWER_GATES)


class ChatResponse(GenerationResponse):
    """Answer to POST /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
