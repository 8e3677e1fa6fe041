"""Configuration of a session: its limits, what it asks the model, and how it reads the answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field, model_validator

from mhc_model.settings import Settings

NOT_FOUND = "not found"
_NO_ANSWER = re.compile(
    r"\W*(not found|not (mentioned|stated|given|said)|no answer|unknown|none|n/a"
    r"|(the (passage|text) )?does not (say|mention|state|tell))\b",
    re.IGNORECASE,
)


class Prompts(Settings):
    """Templates of the model's calls. A model with a chat format wants it written out here."""

    query: str = Field(
        "{source}\n\nAnswer the question from the text above in a few words. If it does not tell, "
        "say: not found.\nQuestion: {question}\nAnswer:",
        description="over one source; has the fields {source} and {question}",
    )
    reduce: str = Field(
        "Partial answers:\n{answers}\n\nGive one answer to the question from the partial answers "
        "above in a few words.\nQuestion: {question}\nAnswer:",
        description="over partial answers; has the fields {answers} and {question}",
    )
    stop: tuple[str, ...] = Field(("\n",), description="strings that end an answer")

    @model_validator(mode="after")
    def _has_fields(self) -> Prompts:
        for name, fields in (
            ("query", ("source", "question")),
            ("reduce", ("answers", "question")),
        ):
            for field in fields:
                if getattr(self, name).count(f"{{{field}}}") != 1:
                    raise ValueError(f"the template {name!r} must have {{{field}}} exactly once")
        return self

    def of_source(self, question: str, source: str) -> str:
        return _filled(self.query, question=question, source=source)

    def of_answers(self, question: str, answers: Sequence[str]) -> str:
        return _filled(
            self.reduce, question=question, answers="\n".join(f"- {answer}" for answer in answers)
        )


class SessionSettings(Settings):
    """What one session may spend and how it reads."""

    budget_tokens: int = Field(
        8192, ge=1, description="prompt and generated tokens of the whole session together"
    )
    max_depth: int = Field(
        4, ge=0, le=16, description="levels of recursion below what the caller or program calls"
    )
    k: int = Field(6, ge=1, le=100, description="passages that `ask` searches for and reads first")
    max_tokens: int = Field(48, ge=1, description="tokens of one answer")
    chunk_tokens: int = Field(
        1024, ge=16, description="tokens of one chunk; fewer where the context holds fewer"
    )
    max_steps: int = Field(256, ge=1, description="verbs that a session may call, all levels")
    max_peek: int = Field(20_000, ge=1, description="characters that one peek may return")
    max_sources: int = Field(4096, ge=1, description="chunks that one map may read, all levels")
    prompts: Prompts = Field(Prompts.model_validate({}), description="what the model is asked")


def answered(text: str) -> bool:
    """Whether a model's words are an answer rather than "not found" or nothing."""
    return bool(text.strip()) and _NO_ANSWER.match(text) is None


def _filled(template: str, **values: str) -> str:
    # In one pass and not with str.format: braces in a text or a question mean nothing.
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)
