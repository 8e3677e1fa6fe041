"""Requests and responses, in the shapes of OpenAI's completions API with `gates` added.

Types are strict (no "0.5" for 0.5, no true for 1), NaN and infinities are refused, an unknown field
is an error. A field that is null counts as not given, as in OpenAI's API; 0 stays 0.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from mhc_model.config import MAX_SAMPLES, MAX_TOP_LOGPROBS
from serve.completions.gates import GATES_FORMS, BehaviourCard, Gates, GatesSource
from serve.errors import field_error, unknown_field

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_INTEGER = 2**31 - 1
ANSWER_GATES = "those after the prompt, where it was read under others (`gates`); else null"


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
    ):
        return tuple(stops)
    raise ValueError(
        f"must be a string or a list of at most {MAX_STOPS} strings, each of 1 to "
        f"{MAX_STOP_LENGTH} characters"
    )


def _stop_ids(value: object) -> tuple[int, ...]:
    if (
        isinstance(value, list)
        and len(value) <= MAX_STOPS
        and _are_tokens(value)
        and all(0 <= token <= MAX_INTEGER for token in value)
    ):
        return tuple(value)
    raise ValueError(f"must be a list of at most {MAX_STOPS} token ids")


def _neutral(value: Any) -> Any:
    """For OpenAI's fields that have no effect here: only the value that has none there either."""
    if value not in (0.0, "", {}):
        raise ValueError("this server does not have it; leave it out")
    return value


_NULL = {"type": "null"}
_Text = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
_TokenIds = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
Prompts = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "string"}},
                _TokenIds,
                {"type": "array", "minItems": 1, "items": _TokenIds},
            ]
        }
    ),
]
Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema({"anyOf": [_Text, {"type": "array", "maxItems": MAX_STOPS, "items": _Text}]}),
]
StopIds = Annotated[
    tuple[int, ...],
    PlainValidator(_stop_ids),
    WithJsonSchema(
        {
            "type": "array",
            "maxItems": MAX_STOPS,
            "items": {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER},
        }
    ),
]
NoPenalty = Annotated[float, AfterValidator(_neutral), WithJsonSchema({"const": 0})]
NoText = Annotated[str, AfterValidator(_neutral), WithJsonSchema({"const": ""})]
NoBias = Annotated[
    dict[str, Any],
    AfterValidator(_neutral),
    WithJsonSchema({"type": "object", "additionalProperties": False}),
]


class Body(BaseModel):
    """What all bodies and their parts have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_and_given(cls, values: Any) -> Any:
        """Drops nulls; names unknown fields with what may have been meant."""
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        for name in given:
            if name not in cls.model_fields:
                raise unknown_field(name, list(cls.model_fields))
        return given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Says about nulls what `_known_and_given` does."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, field in schema["properties"].items():
            if name not in schema.get("required", ()):
                about = {key: field.pop(key) for key in ("description", "default") if key in field}
                kinds = field["anyOf"] if field.keys() == {"anyOf"} else [field]
                nullable = kinds if _NULL in kinds else [*kinds, _NULL]
                schema["properties"][name] = {"anyOf": nullable, **about}
        schema["additionalProperties"] = _NULL
        return schema


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = Field(False, description="one more chunk, with the usage, at the end")


class GenerationRequest(Body):
    """What completions and chat completions have in common."""

    kind: ClassVar[str]
    """Prefix of the ids of its responses."""

    model: str | None = Field(None, description="the served name, the checkpoint's path or hash")
    temperature: float = Field(1.0, ge=0.0, le=2.0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="mass of the likeliest tokens kept")
    top_k: int = Field(0, ge=0, le=MAX_INTEGER, description="likeliest tokens kept; 0 keeps all")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="the same request and seed give the same tokens"
    )
    stop: Stops = Field((), description="strings at which a completion ends")
    stop_token_ids: StopIds = Field((), description="token ids at which a completion ends")
    ignore_eos: bool = Field(False, description="the end-of-document token does not end it")
    n: int = Field(1, ge=1, le=MAX_SAMPLES, description="completions of a prompt")
    stream: bool = Field(False, description="send what is generated as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    presence_penalty: NoPenalty = Field(0.0, description="only 0")
    frequency_penalty: NoPenalty = Field(0.0, description="only 0")
    logit_bias: NoBias = Field({}, description="only empty")
    user: str | None = Field(None, description="accepted and ignored")
    gates: Gates = Field(None, description=GATES_FORMS)

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "stream_options need stream=true; leave them out")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    kind: ClassVar[str] = "cmpl"

    prompt: Prompts = Field(description="one or several prompts, as text or token ids")
    max_tokens: int = Field(
        16,
        ge=0,
        le=MAX_INTEGER,
        description="most tokens to generate for a prompt; 0 needs echo",
    )
    echo: bool = Field(False, description="the text, and logprobs, begin with the prompt's")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="each token's log-probability, and this many of the likeliest tokens",
    )
    best_of: int | None = Field(None, ge=1, le=MAX_SAMPLES, description="only what n is")
    suffix: NoText = Field("", description="only empty")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise field_error("max_tokens", "max_tokens is 0: nothing to answer without echo=true")
        if self.best_of not in (None, self.n):
            raise field_error(
                "best_of",
                f"best_of is {self.best_of} and n is {self.n}; this server returns every "
                f"completion that it makes: leave best_of out",
            )
        return self


class Logprobs(BaseModel):
    """One entry a token; the tokens joined are the text, up to a stop string."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="null for a prompt's first token")
    top_logprobs: list[dict[str, float] | None] | None = Field(
        description="the likeliest tokens and the chosen one; null with logprobs 0"
    )
    text_offset: list[int] = Field(description="where in the choice's text a token begins")


class Choice(BaseModel):
    """One completion."""

    index: int = Field(description="prompt index * n + sample index")
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None
    gates: list[float] | None = Field(description="the 2L gates of this completion")
    answer_gates: list[float] | None = Field(description=ANSWER_GATES)


class PromptTokensDetails(BaseModel):
    """Where prompt tokens came from."""

    cached_tokens: int = Field(description="those that the prefix cache already had")


class Usage(BaseModel):
    """Tokens of all prompts and completions of a request; a prompt counts once, whatever n is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class GenerationResponse(BaseModel):
    """What completions and chat completions answer."""

    id: str
    object: str
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[Any]
    usage: Usage
    gates: list[float] | None = Field(
        description="the 2L gates used; null for a plain model, and where the policy chose "
        "different ones for several prompts (each choice has its own)"
    )
    gates_source: GatesSource | None = Field(description="null for a plain model")
    behaviour: str | None = Field(description="its name, where the source is one")
    answer_gates: list[float] | None = Field(description=ANSWER_GATES)
    answer_gates_source: GatesSource | None = Field(description="null without answer gates")
    answer_behaviour: str | None = Field(description="its name, where that source is one")
    checkpoint: str = Field(description="content hash of the weights")


class CompletionResponse(GenerationResponse):
    """Answer to POST /v1/completions."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[Choice]


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mhc-gates"
    checkpoint: str = Field(description="content hash of the weights")
    max_model_len: int = Field(description="most tokens of a prompt and its completion")
    n_layers: int
    n_gates: int = Field(description="2L; 0 for a model without gates")
    learned_gates: list[float] | None
    policy: bool = Field(description='whether gates may be "policy"')
    behaviours: list[BehaviourCard] = Field(description="whose names gates may be")


class ModelList(BaseModel):
    """Answer to GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Answer to GET /health while the engine runs."""

    status: Literal["ok"] = "ok"
    model: str
    checkpoint: str
    active: int = Field(description="samples being decoded in this replica")
    waiting: int = Field(description="samples that wait for a row in this replica")


class Ready(BaseModel):
    """Answer to GET /ready while the engine would take a request."""

    status: Literal["ready"] = "ready"
