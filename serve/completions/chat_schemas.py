"""Requests and responses of OpenAI's chat completions; see `serve.completions.schemas`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema, model_validator

from mhc_model.config import MAX_TOP_LOGPROBS
from serve.completions.fields import MAX_INTEGER, Body, Only
from serve.completions.schemas import (
    ANSWER_GATES,
    GenerationRequest,
    GenerationResponse,
    PromptEntries,
)
from serve.errors import field_error

MAX_MESSAGES = 1000
_TEMPLATE_NAMES = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("bos_token", "eos_token", "raise_exception", "strftime_now"),
    }
)

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
    """One turn of a conversation; a response's message may be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="who speaks; developer is another name of system"
    )
    content: Content | None = Field(
        None, description="text, or a list of text parts; an assistant's may be null: no text"
    )
    name: str | None = Field(None, description="accepted; a chat template may use it")
    reasoning_content: str | None = Field(None, description="accepted; as name")
    refusal: str | None = Field(None, description="accepted and ignored")
    annotations: list[Any] | None = Field(None, description="accepted and ignored")
    tool_calls: Annotated[Any, Only([])] = Field(
        [], description="only empty: this server calls no tools"
    )

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise field_error("messages", f"content is required where the role is {self.role}")
        return self

    def for_template(self) -> dict[str, Any]:
        """What a chat template gets of it."""
        role = "system" if self.role == "developer" else self.role
        given = self.model_dump(include={"name", "reasoning_content"}, exclude_none=True)
        return {"role": role, "content": self.content or "", **given}


class ChatFields(Body):
    """What goes into a conversation's prompt."""

    model: str | None = Field(None, description="the served name, the checkpoint's path or hash")
    messages: list[Message] | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES, description="the conversation so far"
    )
    add_special_tokens: bool | None = Field(
        None, description="false: nothing goes before the text of a prompt"
    )
    add_generation_prompt: bool | None = Field(
        None, description="false: the prompt does not begin an answer"
    )
    continue_final_message: bool = Field(
        False, description="the answer goes on with the last message"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="further variables of the chat template"
    )
    reasoning_effort: str | None = Field(None, description="the same: one of them by its own name")
    documents: list[dict[str, Any]] | None = Field(
        None, description="for chat templates that quote documents"
    )
    tools: list[dict[str, Any]] | None = Field(
        None, description='for chat templates that list tools; only with tool_choice "none"'
    )
    tool_choice: Literal["none", "auto"] | None = Field(
        None, description="this server calls no tools"
    )

    @model_validator(mode="after")
    def _template_can(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise field_error(
                "continue_final_message",
                "continue_final_message and add_generation_prompt cannot both be true: an answer "
                "goes on with the last message or begins a new one",
            )
        if self.tools and self.tool_choice != "none":
            raise field_error(
                "tools",
                'this server calls no tools; leave them out, or give tool_choice "none" for a '
                "template that lists them",
            )
        taken = sorted(_TEMPLATE_NAMES.intersection(self.chat_template_kwargs or ()))
        if taken:
            raise field_error(
                "chat_template_kwargs",
                f"chat_template_kwargs cannot set {taken[0]!r}, which the server sets; "
                f"{', '.join(sorted(_TEMPLATE_NAMES))} are taken",
            )
        return self


class ChatRequest(ChatFields, GenerationRequest):
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
    functions: Annotated[Any, Only([])] = Field([], description="only empty")
    function_call: Annotated[Any, Only("none", "auto")] = Field(
        "none", description="only none or auto"
    )
    modalities: Annotated[Any, Only(["text"])] = Field(["text"], description="only text")
    echo: Annotated[Any, Only(False)] = Field(False, description="only false")
    include_reasoning: bool | None = Field(None, description="accepted and ignored")
    verbosity: str | None = Field(None, description="accepted and ignored")

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
    token_ids: list[int] | None = Field(None, description="with return_token_ids")


class ChatResponse(GenerationResponse):
    """Answer to POST /v1/chat/completions."""

    prompt_token_ids: list[int] | None = Field(None, description="with return_token_ids")
    prompt_logprobs: PromptEntries | None = Field(None, description="with prompt_logprobs")

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
