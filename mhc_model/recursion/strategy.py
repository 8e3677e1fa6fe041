"""What a session does with a question where no program says: search, read, widen, reduce."""

from __future__ import annotations

from collections.abc import Sequence

from mhc_model.errors import BudgetError
from mhc_model.recursion.calls import Calls
from mhc_model.recursion.search import Passage
from mhc_model.recursion.settings import answered
from mhc_model.recursion.transcript import Answer
from mhc_model.recursion.verbs import Verbs


class Strategy:
    """One question over one session's text, with its verbs."""

    def __init__(self, session: Verbs, calls: Calls, question: str) -> None:
        self._session = session
        self._calls = calls
        self._question = question

    def ask(self, whole: Passage) -> Answer:
        """Answers from a range; raises BudgetError where not even one passage can be read."""
        if self._calls.fits(self._prompt(whole)):
            text = self._session.query(self._question, whole)
            return Answer(text, "answered") if answered(text) else Answer(None, "not_found")
        hits = self._session.search(self._question, start=whole.start, end=whole.end)
        affordable = self._affordable(hits)
        if hits and not affordable:
            affordable = hits[:1]  # raises, and says what it takes
        found = self._found(affordable)
        if found is not None:
            return Answer(found, "answered", tuple(hits))
        if len(affordable) < len(hits):
            return Answer(None, "budget", tuple(hits), detail="not all passages could be read")
        return self._widen(whole, hits)

    def _widen(self, whole: Passage, hits: list[Passage]) -> Answer:
        """Reads the chunks of the range, best ranked first, as far as the budget goes."""
        chunks = self._calls.chunk(self._question, self._session.text, whole.start, whole.end)
        affordable = self._affordable(self._ranked(whole, chunks))
        read = (len(affordable), len(chunks))
        found = self._found(affordable)
        if found is not None:
            return Answer(found, "answered", tuple(hits), read)
        if len(affordable) == len(chunks):
            return Answer(None, "not_found", tuple(hits), read)
        detail = f"the budget covers {len(affordable)} of {len(chunks)} chunks"
        return Answer(None, "budget", tuple(hits), read, detail)

    def _found(self, sources: Sequence[Passage]) -> str | None:
        """One answer from the sources, or None if none of them tells."""
        partial = self._session.map(self._question, sources) if sources else []
        telling = [answer for answer in partial if answered(answer)]
        if not telling:
            return None
        try:
            return self._session.reduce(self._question, telling)
        except BudgetError:
            return telling[0]  # from the best ranked source: better than to have read for nothing

    def _affordable(self, sources: Sequence[Passage]) -> list[Passage]:
        """The first sources that the budget covers, with what it takes to reduce their answers."""
        kept: list[Passage] = []
        settings = self._session.settings
        reduction = settings.prompts.of_answers(self._question, [])
        spare = self._session.usage.left - self._calls.cost([reduction])
        for source in sources:
            cost = self._calls.cost([self._prompt(source)]) + settings.max_tokens
            if cost > spare or len(kept) == settings.max_sources:
                break
            spare -= cost
            kept.append(source)
        return kept

    def _ranked(self, whole: Passage, chunks: list[Passage]) -> list[Passage]:
        """Chunks in the order in which search ranks the passages that they share most with."""
        index = self._session.index
        hits = index.search(self._question, 100, "hybrid", whole.start, whole.end)
        rank = {chunk.start: len(hits) for chunk in chunks}
        for position, hit in enumerate(hits):
            best = max(chunks, key=lambda c: min(c.end, hit.end) - max(c.start, hit.start))
            rank[best.start] = min(rank[best.start], position)
        return sorted(chunks, key=lambda chunk: rank[chunk.start])

    def _prompt(self, source: Passage) -> str:
        return self._calls.query_prompt(self._question, source.text)
