"""What a session gives back: an answer, and what it did.

Every verb is recorded with its arguments, result, tokens, depth and time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mhc_model.recursion.search import Passage

MAX_RECORDED = 1000  # characters of a text in the transcript; a longer one is cut there


FinishReason = Literal["answered", "not_found", "budget", "cancelled"]


@dataclass(frozen=True)
class Answer:
    """How a question ended.

    Attributes:
        text: the answer; None if there is none.
        finish_reason: "answered"; "not_found" if all was read and nothing said it; "budget" if
            tokens ran out first; "cancelled".
        passages: what search found for it.
        read: chunks that the model read after the passages, and how many there are.
        detail: what ended it, where it did not end by itself.
    """

    text: str | None
    finish_reason: FinishReason
    passages: tuple[Passage, ...] = ()
    read: tuple[int, int] = (0, 0)
    detail: str | None = None


@dataclass(frozen=True)
class Step:
    """One call of a verb. Steps are numbered in the order in which they ended.

    Attributes:
        number: from 0.
        verb: peek, search, chunks, query, map, reduce, ask.
        depth: 0 for what the caller or the program called, one more for each level below.
        arguments: as JSON; a passage is its range, a long text is cut.
        result: as JSON, likewise; None if the verb failed.
        error: why it failed; None if it did not.
        prompt_tokens: of this step's own calls of the model, not of the steps below it.
        completion_tokens: likewise.
        ms: how long it took, with the steps below it.
    """

    number: int
    verb: str
    depth: int
    arguments: dict[str, Any]
    result: Any
    error: str | None
    prompt_tokens: int
    completion_tokens: int
    ms: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Transcript:
    """The steps of a session; `listener` sees each as it ends, in the session's thread."""

    listener: Callable[[Step], None] | None = None
    steps: list[Step] = field(default_factory=list)

    def add(self, **values: Any) -> Step:
        step = Step(number=len(self.steps), **values)
        self.steps.append(step)
        if self.listener is not None:
            self.listener(step)
        return step

    def as_json(self) -> list[dict[str, Any]]:
        return [step.as_json() for step in self.steps]

    def to_json(self) -> str:
        return json.dumps(self.as_json(), ensure_ascii=False)


def recorded(value: Any, texts: bool = True) -> Any:
    """`value` as JSON for the transcript; passages without their text unless `texts`."""
    match value:
        case Passage():
            whole = recorded(value.text) if texts else None
            fields = {"start": value.start, "end": value.end, "score": value.score, "text": whole}
            return {name: kept for name, kept in fields.items() if kept is not None}
        case str() if len(value) > MAX_RECORDED:
            return f"{value[:MAX_RECORDED]}… ({len(value)} characters)"
        case list() | tuple():
            return [recorded(item, texts) for item in value]
        case _:
            return value
