"""A session's calls of the model: counted, checked against the budget, cut to the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mhc_model.errors import BudgetError, SessionError
from mhc_model.recursion.model import CancelToken, Gates, LanguageModel
from mhc_model.recursion.search import LongText, Passage, cut, windows
from mhc_model.recursion.settings import SessionSettings

MAX_CHUNKS = 2**16  # of one range
_SAMPLE = 20_000  # characters from which the characters of a token are estimated


@dataclass
class Usage:
    """Tokens spent so far and allowed in all."""

    budget_tokens: int
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def left(self) -> int:
        return self.budget_tokens - self.total_tokens

    def as_json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "budget_tokens": self.budget_tokens,
        }


class Calls:
    """The model as a session sees it."""

    def __init__(
        self, model: LanguageModel, settings: SessionSettings, gates: Gates, cancel: CancelToken
    ) -> None:
        self.model = model
        self.settings = settings
        self.gates = gates
        self.cancel = cancel
        self.usage = Usage(settings.budget_tokens)

    def fits(self, prompt: str) -> bool:
        """Whether the context holds the prompt and an answer."""
        return self.model.count_tokens(prompt) <= self.room

    @property
    def room(self) -> int:
        """Most tokens of a prompt."""
        return self.model.context - self.settings.max_tokens

    def cost(self, prompts: Sequence[str]) -> int:
        """Most tokens that one batch of these prompts can take."""
        return sum(map(self.model.count_tokens, prompts)) + self.settings.max_tokens * len(prompts)

    def complete(self, prompts: Sequence[str]) -> list[str]:
        """One batch of the model; answers without white space around them.

        Raises:
            BudgetError: before the call, if the budget may not cover it.
            CancelledError, MHCError: as `LanguageModel.generate`.
        """
        self.cancel.check()
        cost = self.cost(prompts)
        if cost > self.usage.left:
            raise BudgetError(
                f"{len(prompts)} prompts take up to {cost} tokens; {self.usage.left} of the budget "
                f"of {self.usage.budget_tokens} are left: give a larger budget, or read less"
            )
        done = self.model.generate(
            prompts, self.settings.max_tokens, self.settings.prompts.stop, self.gates, self.cancel
        )
        self.usage.prompt_tokens += sum(answer.prompt_tokens for answer in done)
        self.usage.completion_tokens += sum(answer.completion_tokens for answer in done)
        return [answer.text.strip() for answer in done]

    def query_prompt(self, question: str, source: str) -> str:
        return self.settings.prompts.of_source(question, source)

    def chunk(self, question: str, text: LongText, start: int, end: int) -> list[Passage]:
        """Cuts a range into chunks that each fit, with the question, into the context.

        Raises:
            SessionError: if the question leaves no room for text.
        """
        overhead = self.model.count_tokens(self.query_prompt(question, ""))
        room = min(self.room - overhead, self.settings.chunk_tokens)
        if room < 16:
            raise SessionError(
                f"the question and its instructions take {overhead} tokens, an answer "
                f"{self.settings.max_tokens}, and the context is {self.model.context}: that leaves "
                f"no room for text; shorten the question or lower max_tokens"
            )
        sample = text.text[start : min(end, start + _SAMPLE)]
        per_token = len(sample) / max(1, self.model.count_tokens(sample))
        size = max(8, int(0.9 * room * per_token))
        starts = cut(text.text, size, size // 10, start, end)
        chunks: list[Passage] = []
        for first, last in windows(starts, size):
            self.cancel.check()
            chunks += self._halved(text, first, last, room)
            if len(chunks) > MAX_CHUNKS:
                raise SessionError(
                    f"the range is more than {MAX_CHUNKS} chunks of at most {room} tokens; take a "
                    f"smaller range"
                )
        return chunks

    def _halved(self, text: LongText, start: int, end: int, room: int) -> list[Passage]:
        """The range, in halves as often as it takes for each to have at most `room` tokens."""
        passage = text.passage(start, end)
        if end - start == 1 or self.model.count_tokens(passage.text) <= room:
            return [passage]
        middle = (start + end) // 2
        return self._halved(text, start, middle, room) + self._halved(text, middle, end, room)
