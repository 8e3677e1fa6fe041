"""Requests and responses, in the shapes of OpenAI's completions API with `gates` added.

Types are strict (no "0.5" for 0.5, no true for 1), NaN and infinities are refused, an unknown field
is an error. A field that is null counts as not given, as in OpenAI's API; 0 stays 0.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000

GatesSource = Literal["request", "learned", "policy"]


def _prompts(value: object) -> list[str] | list[list[int]]:
    """Every form of a prompt as a list of texts or a list of token lists."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(entry, str) for entry in value):
            return value
        if _are_tokens(value):
            return [value]
        if all(isinstance(entry, list) and entry and _are_tokens(entry) for entry in value):
            return value
    raise ValueError(
        "must be a string, a list of strings, a list of token ids or a list of lists of token "
        "ids, and no list may be empty"
    )


def _are_tokens(values: list[object]) -> bool:
    return all(type(value) is int for value in values)  # not isinstance: True is an int


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if (
        isinstance(stops, list)
        and len(stops) <= MAX_STOPS
        and all(isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP_LENGTH for stop in stops)
        and all(_is_unicode(stop) for stop in stops)
    ):
        return tuple(stops)
    raise ValueError(
        f"must be a string or a list of at most {MAX_STOPS} strings, each of 1 to "
        f"{MAX_STOP_LENGTH} characters of valid Unicode"
    )


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


Prompts = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
Stops = Annotated[
    tuple[str, ...], PlainValidator(_stops, json_schema_input_type=str | list[str] | None)
]
# Any: only `expand_gates` knows the model's lengths, so that it also words the errors about types.
Gates = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}},
                {"enum": ["learned", "policy"]},
                {"type": "null"},
            ]
        }
    ),
]


class CompletionRequest(BaseModel):
    """POST /v1/completions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    model: str | None = Field(None, description="the served name, the checkpoint's path or hash")
    prompt: Prompts = Field(description="one or several prompts, as text or token ids")
    max_tokens: int = Field(16, ge=1, description="most tokens to generate for a prompt")
    temperature: float = Field(1.0, ge=0.0, le=2.0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="mass of the likeliest tokens kept")
    top_k: int = Field(0, ge=0, le=2**31 - 1, description="likeliest tokens kept; 0 keeps all")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="the same request and seed give the same tokens"
    )
    stop: Stops = Field((), description="strings at which a completion ends")
    n: int = Field(1, description="completions a prompt; only 1")
    stream: bool = Field(False, description="only false")
    logprobs: int | None = Field(
        None, description="0 gives the chosen tokens' log-probabilities; only 0"
    )
    user: str | None = Field(None, description="accepted and ignored")
    gates: Gates = Field(
        None,
        description="a number, 1, L or 2L numbers in [0, 1], 'learned' (the default) or 'policy'",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}

    @field_validator("n")
    @classmethod
    def _one_completion(cls, n: int) -> int:
        if n != 1:
            raise ValueError("this server gives 1 completion a prompt; use n=1 and several seeds")
        return n

    @field_validator("stream")
    @classmethod
    def _no_stream(cls, stream: bool) -> bool:
        if stream:
            raise ValueError("this server does not stream; use stream=false")
        return stream

    @field_validator("logprobs")
    @classmethod
    def _chosen_only(cls, logprobs: int | None) -> int | None:
        if logprobs not in (None, 0):
            raise ValueError("this server gives the chosen tokens' logprobs only; use logprobs=0")
        return logprobs


class Logprobs(BaseModel):
    """One entry a generated token; the tokens joined are the text, up to a stop string."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
    text_offset: list[int]


class Choice(BaseModel):
    """One completion."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None
    gates: list[float] | None = Field(description="the 2L gates of this completion")


class Usage(BaseModel):
    """Tokens of all prompts and completions of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    """Answer to POST /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    gates: list[float] | None = Field(
        description="the 2L gates used; null for a plain model, and where the policy chose "
        "different ones for several prompts (each choice has its own)"
    )
    gates_source: GatesSource | None = Field(description="null for a plain model")
    checkpoint: str = Field(description="content hash of the weights")


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mhc-gates"
    checkpoint: str = Field(description="content hash of the weights")
    max_model_len: int = Field(description="most tokens of a prompt and its completion")
    n_layers: int
    n_gates: int = Field(description="2L; 0 for a plain model")
    learned_gates: list[float] | None
    policy: bool = Field(description='whether gates may be "policy"')


class ModelList(BaseModel):
    """Answer to GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Answer to GET /health while the engine runs."""

    status: Literal["ok"] = "ok"
    model: str
    checkpoint: str
    active: int = Field(description="prompts being decoded in this replica")
    waiting: int = Field(description="prompts that wait for a row in this replica")
