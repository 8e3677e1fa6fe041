"""Bodies of POST /v1/recursive."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from serve.completions import Body, Gates, GatesSource
from serve.errors import field_error

MAX_PROGRAM = 8192
MAX_QUESTION = 2000


class Endpoint(Body):
    """Another model to read with, if the server allows its address."""

    url: str = Field(min_length=1, max_length=2000, description="one of the server's endpoints")
    model: str = Field(min_length=1, max_length=500, description="the model's name there")
    api_key: str | None = Field(None, max_length=2000, description="sent there as a bearer token")
    context: int = Field(4096, ge=1, le=2**31 - 1, description="most tokens of prompt and answer")


class RecursiveRequest(Body):
    """A question, or a program of verbs, over a text of any length."""

    model: str | None = Field(None, description="the served name, the checkpoint's path or hash")
    text: str = Field(min_length=1, description="what to read")
    question: str | None = Field(None, min_length=1, max_length=MAX_QUESTION)
    program: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_PROGRAM,
        description="verbs to run instead of the default strategy; see docs/recursion.md",
    )
    gates: Gates = Field(None, description="of every call of the model, as in completions")
    budget_tokens: int = Field(
        8192, ge=1, description="prompt and generated tokens of the whole session"
    )
    max_depth: int = Field(4, ge=0, le=16, description="levels of recursion")
    k: int = Field(6, ge=1, le=100, description="passages searched for and read first")
    max_tokens: int = Field(48, ge=1, le=4096, description="tokens of one answer of the model")
    endpoint: Endpoint | None = Field(None, description="read with another model")
    stream: bool = Field(False, description="send each step as an event, the answer at the end")

    @model_validator(mode="after")
    def _has_a_task(self) -> Self:
        if (self.question is None) == (self.program is None):
            raise field_error("question", "give either a question or a program")
        return self


class FoundPassage(BaseModel):
    """A part of the text that search found."""

    start: int = Field(description="first character, from 0")
    end: int = Field(description="one past the last")
    text: str
    score: float | None


class SessionUsage(BaseModel):
    """Tokens of all the model's calls together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    budget_tokens: int


class SessionStep(BaseModel):
    """One verb: what it was called with, gave and took."""

    number: int
    verb: str
    depth: int
    arguments: dict[str, Any]
    result: Any
    error: str | None
    prompt_tokens: int
    completion_tokens: int
    ms: float


class StepEvent(BaseModel):
    """An event of a stream."""

    object: Literal["recursive.step"] = "recursive.step"
    step: SessionStep


class RecursiveResponse(BaseModel):
    """The answer, what it rests on, and how it was found."""

    object: Literal["recursive.answer"] = "recursive.answer"
    id: str
    created: int
    model: str
    checkpoint: str | None = Field(description="null where an endpoint's model has read")
    answer: str | None = Field(description="null if there is none")
    finish_reason: Literal["answered", "not_found", "budget", "cancelled"]
    detail: str | None
    passages: list[FoundPassage]
    chunks_read: int
    chunks: int
    transcript: list[SessionStep]
    usage: SessionUsage
    gates: list[float] | None = Field(None, description="of the last prompt read")
    gates_source: GatesSource | None = None
    behaviour: str | None = None
    answer_gates: list[float] | None = None
    answer_gates_source: GatesSource | None = None
    answer_behaviour: str | None = None
