"""Gates of requests: the forms they come in, the numbers they stand for, where these come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal, NoReturn

import torch
from pydantic import BaseModel, Field, WithJsonSchema
from torch import Tensor

from mhc_model.config import BEHAVIOUR_NAME, ModelConfig
from mhc_model.decoder import Decoder
from mhc_model.errors import GateError
from mhc_model.gates import (
    LEARNED,
    PhaseGates,
    allowed_gates,
    expand_gates,
    gates_hash,
    resolve_gates,
)
from mhc_model.policy import GatePolicy
from serve.errors import APIError

POLICY = "policy"
GatesSource = Literal["request", "learned", "policy", "behaviour"]

# Any: only `resolve_gates` knows the model's lengths and names, so that it also words the errors.
_Gate = {"type": "number", "minimum": 0, "maximum": 1}
_Forms = [
    _Gate,
    {"type": "array", "minItems": 1, "items": _Gate},
    {"enum": [LEARNED, POLICY]},
    {"type": "string", "pattern": f"^{BEHAVIOUR_NAME}$"},
]
_Phase = {"anyOf": [*_Forms, {"type": "null"}]}
_Phases = {
    "type": "object",
    "properties": dict.fromkeys(PhaseGates._fields, _Phase),
    "minProperties": 1,
    "additionalProperties": False,
}
Gates = Annotated[Any, WithJsonSchema({"anyOf": [*_Forms, _Phases]})]
GATES_FORMS = (
    "1, L or 2L numbers in [0, 1], 'learned' (the default), 'policy', the name of a behaviour (GET "
    "/v1/gates lists them), or {'prompt': ..., 'answer': ...} with one of these for each"
)


class BehaviourCard(BaseModel):
    """What a range of gates means to the model."""

    name: str = Field(description="what `gates` of a request may be")
    ranges: list[tuple[float, float]] = Field(
        description="lowest and highest gate that it was trained under: one pair for all "
        "sublayers, or one per layer or sublayer"
    )
    gates: list[float] = Field(description="the 2L gates that stand for it in a request")
    style: str | None = Field(
        description="answer style of its rows; null: its name, where that is a style"
    )
    share: float | None = Field(description="of the training rows; null where not known")


def behaviour_cards(config: ModelConfig) -> list[BehaviourCard]:
    """The behaviours of a model, in their order."""
    return [
        BehaviourCard(
            name=name,
            ranges=list(behaviour.ranges),
            gates=expand_gates(behaviour.representative, config.n_layers).tolist(),
            style=behaviour.style,
            share=behaviour.share,
        )
        for name, behaviour in config.behaviours.items()
    ]


@dataclass(frozen=True)
class Origin:
    """Where gates come from.

    Attributes:
        source: None for a plain model.
        behaviour: its name, if one was asked for.
    """

    source: GatesSource | None
    behaviour: str | None = None


@dataclass(frozen=True)
class ChosenGates:
    """Gates of each prompt of a request.

    Attributes:
        prompts: (2L,) float32 on the CPU, one a prompt; None for a plain model.
        answers: likewise, those of its answer; None where they are the prompt's.
        origin: of the prompts' gates.
        answer_origin: of the answers'.
    """

    prompts: Sequence[Tensor | None]
    answers: Sequence[Tensor | None]
    origin: Origin
    answer_origin: Origin

    @property
    def differ(self) -> bool:
        """Whether any answer has gates of its own."""
        return any(answer is not None for answer in self.answers)

    @property
    def for_engine(self) -> list[Tensor | None]:
        """What the engine's requests get: (2L,), or (2, 2L) where the answer's gates differ."""
        if self.origin.source == LEARNED and not self.differ:
            return [None] * len(self.prompts)  # the engine has those
        pairs = zip(self.prompts, self.answers, strict=True)
        return [None if gates is None else _joined(gates, answer) for gates, answer in pairs]

    @property
    def hash(self) -> str | None:
        """Of the gates, both phases where they differ; None where prompts have different ones."""
        pairs = zip(self.prompts, self.answers, strict=True)
        hashes = {
            None if gates is None else gates_hash(_joined(gates, answer)) for gates, answer in pairs
        }
        return hashes.pop() if len(hashes) == 1 else None

    @property
    def labels(self) -> dict[str, Any]:
        """Where they come from, as answers and the log say it."""
        answer = self.answer_origin if self.differ else Origin(None)
        return {
            "gates_source": self.origin.source,
            "behaviour": self.origin.behaviour,
            "answer_gates_source": answer.source,
            "answer_behaviour": answer.behaviour,
        }

    @property
    def of_prompts(self) -> ChosenGates:
        """Those of the prompts alone."""
        return dataclasses.replace(self, answers=[None] * len(self.prompts))

    def numbers(self, prompt: int) -> dict[str, list[float] | None]:
        """`gates` and `answer_gates` of one prompt, as answers give them."""
        gates, answer = self.prompts[prompt], self.answers[prompt]
        return {
            "gates": None if gates is None else gates.tolist(),
            "answer_gates": None if answer is None else answer.tolist(),
        }

    def common(self) -> dict[str, list[float] | None]:
        """The same of all prompts; None where they differ."""
        first, *others = map(self.numbers, range(len(self.prompts)))
        return {
            name: value if all(other[name] == value for other in others) else None
            for name, value in first.items()
        }


class GateChooser:
    """Finds the numbers behind what a request gives as gates; safe to call from any thread."""

    def __init__(self, model: Decoder, policy: GatePolicy | None) -> None:
        self._model = model
        self._policy = policy
        self._learned: Tensor | None = None
        if model.config.gateless is None:
            self._learned = model.learned_gates().detach().cpu()
        policies = [] if policy is None else [POLICY]
        self._names = [LEARNED, *policies, *model.config.behaviours]

    def choose(self, wanted: object, prompts: Sequence[Sequence[int]]) -> ChosenGates:
        """The gates of every prompt.

        Args:
            wanted: `gates` of a body.
            prompts: token ids of the vocabulary, for the policy.

        Raises:
            GateError: for what is none of the forms, with the lengths and names that are allowed.
            APIError: 400 where there is no policy.
        """
        if self._learned is None:
            if wanted is not None:
                raise GateError(
                    f"this model is {self._model.config.gateless} and has no gates; leave them out"
                )
            nothing = [None] * len(prompts)
            return ChosenGates(nothing, nothing, Origin(None), Origin(None))
        both = dict.fromkeys(PhaseGates._fields, wanted)
        asked = wanted if isinstance(wanted, Mapping) else both
        rows = [
            (self._learned if gates is None else gates).expand(len(prompts), -1)
            for gates in self._resolve(asked)
        ]
        by_policy = [_is_policy(asked.get(phase)) for phase in PhaseGates._fields]
        if any(by_policy):
            chosen = self._by_policy(prompts)
            rows = [chosen[:, i] if by_policy[i] else gates for i, gates in enumerate(rows)]
        return ChosenGates(
            list(rows[0]),
            [None if row.equal(other) else other for row, other in zip(*rows, strict=True)],
            *(_origin(asked.get(phase)) for phase in PhaseGates._fields),
        )

    def _resolve(self, asked: Mapping[str, Any]) -> PhaseGates:
        """All but the policy's, for which the learned gates stand in."""
        for name in asked.values():
            if isinstance(name, str) and name not in (*self._names, POLICY):
                self._refuse(f"gates are {name!r}")
        try:
            without = {key: None if _is_policy(value) else value for key, value in asked.items()}
            return resolve_gates(without, self._model.config)
        except GateError as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> NoReturn:
        allowed = allowed_gates(self._model.config.n_layers)
        names = ", ".join(f'"{name}"' for name in self._names)
        if allowed not in reason:
            reason = f"{reason}; {allowed}"
        raise GateError(f"{reason}; or a name: {names}") from None

    def _by_policy(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(b, 2, 2L): what the policy chooses for each prompt and its answer."""
        if self._policy is None:
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                "this server has no gate policy; start it with --policy DIR, or give numbers or a "
                f"name: {', '.join(self._names)}",
                "gates",
                "no_policy",
            )
        rows = self._policy.gates_for_prompts(self._model, prompts)
        return rows if rows.ndim == 3 else rows[:, None].expand(-1, len(PhaseGates._fields), -1)


def _is_policy(gates: object) -> bool:
    return isinstance(gates, str) and gates == POLICY


def _origin(gates: object) -> Origin:
    match gates:
        case None | "learned":
            return Origin("learned")
        case "policy":
            return Origin("policy")
        case str(name):
            return Origin("behaviour", name)
    return Origin("request")


def _joined(gates: Tensor, answer: Tensor | None) -> Tensor:
    return gates if answer is None else torch.stack([gates, answer])
