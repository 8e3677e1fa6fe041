"""Requests and responses, in the shapes of OpenAI's completions API with `gates` added.

Fields that OpenAI does not have are vLLM's, by its names and with its meanings.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from mhc_model.config import MAX_SAMPLES, MAX_TOP_LOGPROBS
from serve.completions.fields import (
    MAX_INTEGER,
    AllowedIds,
    Biases,
    Body,
    Only,
    Prompts,
    StopIds,
    Stops,
)
from serve.completions.gates import GATES_FORMS, BehaviourCard, Gates, GatesSource
from serve.completions.structures import HasStructure
from serve.errors import field_error

ANSWER_GATES = "those after the prompt, where it was read under others (`gates`); else null"
_IGNORED = "accepted and ignored"


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = Field(False, description="one more chunk, with the usage, at the end")
    include_obfuscation: bool | None = Field(None, description=_IGNORED)
    continuous_usage_stats: Annotated[Any, Only(False)] = Field(False, description="only false")


class IgnoredFields(Body):
    """What clients send along, and no completion depends on."""

    user: str | None = Field(None, description=_IGNORED)
    metadata: dict[str, Any] | None = Field(None, description=_IGNORED)
    store: bool | None = Field(None, description=_IGNORED)
    service_tier: str | None = Field(None, description=_IGNORED)
    safety_identifier: str | None = Field(None, description=_IGNORED)
    prompt_cache_key: str | None = Field(None, description=_IGNORED)
    prompt_cache_retention: str | None = Field(None, description=_IGNORED)
    parallel_tool_calls: bool | None = Field(None, description=_IGNORED)
    request_id: str | None = Field(None, description=f"{_IGNORED}: the header x-request-id counts")
    session_id: str | None = Field(None, description=_IGNORED)
    priority: int | None = Field(None, description=_IGNORED)
    length_penalty: float | None = Field(None, description=f"{_IGNORED}: of beams, see there")
    spaces_between_special_tokens: bool | None = Field(None, description=_IGNORED)
    use_beam_search: Annotated[Any, Only(False)] = Field(False, description="only false")
    skip_special_tokens: Annotated[Any, Only(True)] = Field(True, description="only true")
    include_stop_str_in_output: Annotated[Any, Only(False)] = Field(False, description="only false")
    return_tokens_as_token_ids: Annotated[Any, Only(False)] = Field(False, description="only false")
    bad_words: Annotated[Any, Only([])] = Field([], description="only empty")


class GenerationRequest(HasStructure, IgnoredFields):
    """What completions and chat completions have in common."""

    kind: ClassVar[str]
    """Prefix of the ids of its responses."""

    model: str | None = Field(None, description="the served name, the checkpoint's path or hash")
    temperature: float = Field(1.0, ge=0.0, le=2.0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="mass of the likeliest tokens kept")
    top_k: int = Field(
        0, ge=-1, le=MAX_INTEGER, description="likeliest tokens kept; 0 and -1 keep all"
    )
    min_p: float = Field(
        0.0, ge=0.0, le=1.0, description="least probability kept, as a share of the likeliest's"
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="the same request and seed give the same tokens; -1: any",
    )
    presence_penalty: float = Field(
        0.0, ge=-2.0, le=2.0, description="taken from the logits of tokens that were generated"
    )
    frequency_penalty: float = Field(
        0.0, ge=-2.0, le=2.0, description="taken from them for each time"
    )
    repetition_penalty: float = Field(
        1.0,
        ge=0.01,
        le=100.0,
        description="divides the logits of tokens of prompt and answer (multiplies negative ones)",
    )
    logit_bias: Biases | None = Field(None, description="token id -> number added to its logit")
    allowed_token_ids: AllowedIds | None = Field(None, description="no other tokens are generated")
    min_tokens: int = Field(
        0, ge=0, le=MAX_INTEGER, description="least tokens before anything ends a completion"
    )
    stop: Stops = Field((), description="strings at which a completion ends")
    stop_token_ids: StopIds = Field((), description="token ids at which a completion ends")
    ignore_eos: bool = Field(False, description="the end-of-document token does not end it")
    n: int = Field(1, ge=1, le=MAX_SAMPLES, description="completions of a prompt")
    stream: bool = Field(False, description="send what is generated as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="log-probabilities of the prompt's tokens, and of so many of the likeliest",
    )
    return_token_ids: bool = Field(False, description="give token ids of prompt and answer too")
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=MAX_INTEGER,
        description="most tokens of a prompt, of which the last are kept; -1: what there is room "
        "for",
    )
    truncation_side: Literal["left", "right"] = Field("left", description="where a prompt is cut")
    add_special_tokens: bool | None = Field(
        None, description="false: nothing goes before the text of a prompt"
    )
    gates: Gates = Field(None, description=GATES_FORMS)

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "stream_options need stream=true; leave them out")
        if self.prompt_logprobs is not None and self.stream:
            raise field_error(
                "prompt_logprobs", "prompt_logprobs are not in streams; leave one out"
            )
        return self

    @property
    def samples(self) -> int:
        """Completions that are made of a prompt."""
        return self.n

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
    best_of: int | None = Field(
        None,
        ge=1,
        le=MAX_SAMPLES,
        description="completions made, of which the n with the best log-probability per token are "
        "returned",
    )
    suffix: Annotated[Any, Only("")] = Field("", description="only empty")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise field_error("max_tokens", "max_tokens is 0: nothing to answer without echo=true")
        if self.best_of is not None and self.best_of < self.n:
            raise field_error(
                "best_of", f"best_of is {self.best_of}; it must be at least n, which is {self.n}"
            )
        if self.samples > self.n and self.stream:
            raise field_error("best_of", "best_of above n cannot be streamed; leave one out")
        return self

    @property
    def samples(self) -> int:
        return self.best_of or self.n


class PromptLogprob(BaseModel):
    """A token at one position of a prompt, as vLLM gives it."""

    logprob: float
    rank: int | None = Field(description="tokens that are at least as likely; null: not known")
    decoded_token: str


PromptEntries = list[dict[int, PromptLogprob] | None]
"""By token id, for each token of a prompt; null for the first."""


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
    token_ids: list[int] | None = Field(None, description="with return_token_ids")
    prompt_token_ids: list[int] | None = Field(None, description="with return_token_ids")
    prompt_logprobs: PromptEntries | None = Field(None, description="with prompt_logprobs")


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


class Version(BaseModel):
    """Answer to GET /version."""

    version: str


class Ready(BaseModel):
    """Answer to GET /ready while the engine would take a request."""

    status: Literal["ready"] = "ready"
