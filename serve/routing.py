"""GET /v1/gates and POST /v1/routing: what can be steered, and what that does to the streams."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from torch import Tensor

from mhc_model.config import ModelConfig
from mhc_model.engine import EngineBase
from mhc_model.errors import GateError
from mhc_model.gates import gate_names
from mhc_model.routing import PromptRouting, TokenRouting, prompt_routing
from serve.completions import (
    GATES_FORMS,
    BehaviourCard,
    Body,
    ChosenGates,
    Gates,
    GatesSource,
)
from serve.errors import APIError, error_responses
from serve.monitoring import trace_of
from serve.service import CompletionService

# Of an answer with per_token; about 5 MB of JSON.
MAX_VALUES = 500_000
DECIMALS = 6

Values = list[float] | list[list[float]]
Matrices = list[list[float]] | list[list[list[float]]]


def _prompt(value: object) -> str | list[int]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return value
    raise ValueError("must be one text or one list of token ids, not empty")


Prompt = Annotated[
    str | list[int],
    PlainValidator(_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
            ]
        }
    ),
]


class RoutingRequest(Body):
    """POST /v1/routing."""

    model: str | None = Field(None, description="the served name, the checkpoint's path or hash")
    prompt: Prompt = Field(description="one prompt, as text or token ids")
    gates: Gates = Field(None, description=f"{GATES_FORMS}; the prompt's are used")
    per_token: bool = Field(False, description="figures of each token in place of their means")


class Sublayer(BaseModel):
    """One sublayer; n streams, and with per_token a leading axis of t tokens."""

    name: str = Field(description="such as layer0.attention")
    gate: float
    h_pre: Values = Field(description="[n] or [t][n]: what the sublayer reads of each stream")
    h_post: Values = Field(description="[n] or [t][n]: what each stream gets of its output")
    h_res: Matrices = Field(
        description="[n][n] or [t][n][n], before the gate: h_res[i][j] is what stream i sends to j"
    )
    identity_distance: float | list[float] = Field(
        description="Frobenius norm of the gated H_res - I"
    )
    stream_similarity: float | list[float] = Field(
        description="mean cosine of pairs of streams before the sublayer"
    )
    row_error: float = Field(description="worst distance of a row sum of H_res from one")
    column_error: float = Field(description="the same of a column sum")


class RoutingResponse(BaseModel):
    """Answer to POST /v1/routing."""

    object: Literal["routing"] = "routing"
    model: str
    checkpoint: str = Field(description="content hash of the weights")
    gates: list[float] = Field(description="the 2L gates used")
    gates_source: GatesSource | None
    behaviour: str | None = Field(description="its name, where the source is one")
    token_ids: list[int]
    tokens: list[str] = Field(description="each token as text")
    n_streams: int
    per_token: bool
    composite_gain: list[float] = Field(
        description="by depth: largest row or column sum of the product of a token's mixings so far"
    )
    sublayers: list[Sublayer]


class GatesDescription(BaseModel):
    """Answer to GET /v1/gates."""

    object: Literal["gates"] = "gates"
    model: str
    checkpoint: str = Field(description="content hash of the weights")
    n_layers: int
    n_gates: int = Field(description="2L; 0 for a model without gates")
    n_streams: int = Field(description="1 for a plain model")
    sublayers: list[str] = Field(description="what each gate belongs to, in their order")
    learned: list[float] | None = Field(description="the 2L learned gates; null for a plain model")
    allowed_lengths: list[int] = Field(description="how many numbers a request may give")
    minimum: float = 0.0
    maximum: float = 1.0
    policy: bool = Field(description='whether gates may be "policy"')
    behaviours: list[BehaviourCard] = Field(description="whose names gates may be")


def routing_routes(service: CompletionService, router: APIRouter) -> APIRouter:
    """Adds the two routes to a router and returns it."""
    description = describe_gates(service)

    @router.get("/v1/gates", responses=error_responses(401, 500))
    async def gates() -> GatesDescription:
        """The model's gates: which there are, and what training made of them."""
        return description

    @router.post(
        "/v1/routing",
        responses={
            200: {"model": RoutingResponse},
            **error_responses(400, 401, 404, 413, 429, 500, 503, 504),
        },
        response_class=Response,
    )
    async def routing(body: RoutingRequest, request: Request) -> Response:
        """What the streams do with a prompt: H_pre, H_post, H_res and how alike they are."""
        return await answer_routing(service, body, request)

    return router


def describe_gates(service: CompletionService) -> GatesDescription:
    """Answers GET /v1/gates."""
    card, config = service.card, service.config
    names = [] if config.gateless else gate_names(config.n_layers)
    return GatesDescription(
        model=card.id,
        checkpoint=card.checkpoint,
        n_layers=config.n_layers,
        n_gates=config.n_gates,
        n_streams=1 if config.mhc is None else config.mhc.n_streams,
        sublayers=names,
        learned=card.learned_gates,
        allowed_lengths=sorted({1, config.n_layers, config.n_gates}) if names else [],
        policy=card.policy,
        behaviours=card.behaviours,
    )


async def answer_routing(
    service: CompletionService, body: RoutingRequest, request: Request
) -> Response:
    """Answers POST /v1/routing.

    The model runs on the engine's thread between two steps: its own passes must not be seen.

    Raises:
        APIError, GateError, EngineError, DataError: all of them have an HTTP form.
    """
    service.check_model(body.model)
    config = service.config
    if config.mhc is None:
        raise GateError("this model is plain (mhc: null): it has no streams, gates or routing")
    tokens, chosen = await asyncio.to_thread(
        service.preparer.prompt_and_gates, body.prompt, body.gates
    )
    if body.per_token:
        _check_size(len(tokens), config)
    trace = trace_of(request)
    trace.prompt_tokens = len(tokens)
    trace.used_gates(chosen.hash, chosen.labels)

    def run(engine: EngineBase) -> PromptRouting:
        return prompt_routing(engine.model, tokens, chosen.prompts[0])

    found = await service.run(run)
    answer = await asyncio.to_thread(_response, service, body, tokens, found, chosen)
    return Response(answer, media_type="application/json")


def values_per_token(config: ModelConfig) -> int:
    """Numbers that an answer with per_token has for each token of the prompt."""
    n = 1 if config.mhc is None else config.mhc.n_streams
    return 2 * config.n_layers * (n * n + 2 * n + 2)


def _check_size(tokens: int, config: ModelConfig) -> None:
    values = tokens * values_per_token(config)
    if values > MAX_VALUES:
        raise APIError(
            HTTPStatus.BAD_REQUEST,
            f"per_token figures of {tokens} tokens are {values} numbers; at most {MAX_VALUES} are "
            f"given, so {MAX_VALUES // values_per_token(config)} tokens: shorten the prompt, or "
            f"ask for the means (per_token false)",
            "per_token",
        )


def _response(
    service: CompletionService,
    body: RoutingRequest,
    tokens: list[int],
    found: PromptRouting,
    chosen: ChosenGates,
) -> str:
    names = gate_names(service.config.n_layers)
    return RoutingResponse(
        model=service.card.id,
        checkpoint=service.card.checkpoint,
        gates=found.gates.tolist(),
        gates_source=chosen.origin.source,
        behaviour=chosen.origin.behaviour,
        token_ids=tokens,
        tokens=[service.identity.names.names[token] for token in tokens],
        n_streams=found.sublayers[0].pre.shape[-1],
        per_token=body.per_token,
        composite_gain=[round(gain, DECIMALS) for gain in found.composite_gains],
        sublayers=[
            _sublayer(name, float(gate), record, body.per_token)
            for name, gate, record in zip(names, found.gates, found.sublayers, strict=True)
        ],
    ).model_dump_json()


def _sublayer(name: str, gate: float, record: TokenRouting, per_token: bool) -> Sublayer:
    def values(figures: Tensor) -> Any:
        kept = figures.double() if per_token else figures.double().mean(dim=0)
        return kept.round(decimals=DECIMALS).tolist()

    return Sublayer(
        name=name,
        gate=gate,
        h_pre=values(record.pre),
        h_post=values(record.post),
        h_res=values(record.res),
        identity_distance=values(record.identity_distance),
        stream_similarity=values(record.similarity),
        row_error=float(record.row_error.max()),
        column_error=float(record.column_error.max()),
    )
