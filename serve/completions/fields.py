"""Kinds of fields that bodies have, and what all bodies have in common.

Types are strict (no "0.5" for 0.5, no true for 1), NaN and infinities are refused, an unknown field
is an error. A field that is null counts as not given, as in OpenAI's API; 0 stays 0.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from serve.errors import unknown_field

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_INTEGER = 2**31 - 1
MAX_BIAS = 100.0
MAX_IDS = 1_000_000


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


def _allowed_ids(value: object) -> tuple[int, ...]:
    if (
        isinstance(value, list)
        and value
        and _are_tokens(value)
        and all(0 <= token <= MAX_INTEGER for token in value)
    ):
        return tuple(value)
    raise ValueError("must be a list of at least one token id")


def _biases(value: object) -> dict[int, float]:
    """OpenAI's keys are texts, since JSON has no others."""
    if not isinstance(value, dict):
        raise ValueError('must be an object of token ids and biases, such as {"42": -100}')
    biases = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise ValueError(f"the key {key!r} is no token id")
        if type(bias) not in (int, float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise ValueError(f"the bias of token {key} must be -100 to 100")
        biases[int(key)] = float(bias)
    return biases


class Only:
    """Of fields that have no effect here: only the values that have none elsewhere either."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": list(self.values)}

    def _check(self, value: Any) -> Any:
        if not any(type(value) is type(each) and value == each for each in self.values):
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
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_INTEGER)]], Field(max_length=MAX_IDS)]
AllowedIds = Annotated[
    tuple[int, ...],
    PlainValidator(_allowed_ids),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER},
        }
    ),
]
Biases = Annotated[
    dict[int, float],
    PlainValidator(_biases),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
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
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for name in given:
            if name not in known:
                raise unknown_field(name, known)
        return given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Says about nulls what `_known_and_given` does."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, field in schema.get("properties", {}).items():
            if name not in schema.get("required", ()):
                about = {key: field.pop(key) for key in ("description", "default") if key in field}
                kinds = field["anyOf"] if field.keys() == {"anyOf"} else [field]
                nullable = kinds if _NULL in kinds else [*kinds, _NULL]
                schema["properties"][name] = {"anyOf": nullable, **about}
        schema["additionalProperties"] = _NULL
        return schema
