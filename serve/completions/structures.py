"""The form that a request wants of its answers, in OpenAI's words and in vLLM's."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mhc_model.engine import Structure
from serve.completions.fields import Body, Only
from serve.errors import field_error

MAX_CHOICES = 10_000
_AnyObject = '{"type": "object"}'


class JsonSchema(Body):
    """A JSON schema as OpenAI's field has it."""

    name: str | None = Field(None, description="of the schema; ignored")
    description: str | None = Field(None, description="for people; ignored")
    schema_: dict[str, Any] = Field(alias="schema", description="what the answer conforms to")
    strict: bool | None = Field(None, description="answers always conform")


class ResponseFormat(Body):
    """OpenAI's field."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="what an answer is")
    json_schema: JsonSchema | None = Field(None, description="only with type json_schema")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise field_error(
                "response_format", 'json_schema goes with type "json_schema", and only with it'
            )
        return self

    @property
    def structure(self) -> Structure | None:
        if self.type == "json_object":
            return Structure("json", _AnyObject)
        return None if self.json_schema is None else _json(self.json_schema.schema_)


class StructuredOutputs(Body):
    """vLLM's field; one of the forms."""

    json_: dict[str, Any] | str | None = Field(
        None, alias="json", description="a JSON schema, or its text"
    )
    json_object: Literal[True] | None = Field(None, description="any JSON object")
    regex: str | None = Field(None, description="a regular expression of the whole answer")
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)] | None = Field(
        None, description="texts, of which the answer is one"
    )
    grammar: str | None = Field(None, description="a grammar, in Lark's or GBNF's form")
    disable_any_whitespace: bool = Field(
        False, description="no white space between the parts of JSON"
    )
    disable_additional_properties: Annotated[Any, Only(False)] = Field(
        False, description="only false: say it in the schema"
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        kinds = (self.json_, self.json_object, self.regex, self.choice, self.grammar)
        if sum(kind is not None for kind in kinds) != 1:
            raise field_error(
                "structured_outputs",
                "give one of json, json_object, regex, choice and grammar",
            )
        return self

    @property
    def structure(self) -> Structure:
        compact = self.disable_any_whitespace
        if self.json_ is not None:
            return _json(self.json_, compact)
        if self.regex is not None:
            return Structure("regex", self.regex)
        if self.choice is not None:
            return Structure("choice", json.dumps(self.choice))
        if self.grammar is not None:
            return Structure("grammar", self.grammar)
        return Structure("json", _AnyObject, compact)


class HasStructure(Body):
    """A request that may want a form of its answers."""

    response_format: ResponseFormat | None = Field(
        None, description="text, any JSON object, or JSON by a schema"
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="the form of an answer, as vLLM has it"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        other = self.response_format
        if self.structured_outputs is not None and other is not None and other.type != "text":
            raise field_error(
                "structured_outputs",
                "response_format and structured_outputs both give the form of an answer; give one",
            )
        return self

    @property
    def structure(self) -> Structure | None:
        """The form of an answer; None: any."""
        if self.structured_outputs is not None:
            return self.structured_outputs.structure
        return None if self.response_format is None else self.response_format.structure


def _json(schema: dict[str, Any] | str, compact: bool = False) -> Structure:
    source = schema if isinstance(schema, str) else json.dumps(schema)
    return Structure("json", source, compact)
