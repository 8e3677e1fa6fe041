"""A session over a text that may be far longer than the model's context.

The model never sees the text as a whole. A caller, or a program (`mhc_model.recursion.program`),
works with verbs: `peek`, `search` and `chunks` look at the text and cost no tokens; `query`, `map`
and `reduce` call the model, each in one batch; `ask` puts them together. A source that does not fit
into the context is cut into chunks, each is asked, and the partial answers are reduced to one:
that is the recursion. Depth, tokens and steps are bounded, and all of it is in the transcript.
"""

from __future__ import annotations

from mhc_model.errors import BudgetError, CancelledError
from mhc_model.recursion.strategy import Strategy
from mhc_model.recursion.transcript import Answer, FinishReason
from mhc_model.recursion.verbs import Verbs, check_question


class Session(Verbs):
    """The verbs, and `ask`, which puts them together; see the module's docstring."""

    def ask(self, question: str, start: int = 0, end: int | None = None) -> Answer:
        """Answers from a range of the text, by default all of it.

        Searches, and asks the k best passages in one batch; if none of them tells, maps over as
        many chunks of the range as the budget covers, best ranked first; reduces what was found.

        Running out of budget, or being cancelled, is an answer with that finish_reason.

        Raises:
            SessionError: if the depth is used up, or the context is too small.
        """
        answer = Answer(None, "not_found")
        with self._step("ask", question=question, start=start, end=end) as step:
            check_question(question)
            try:
                answer = Strategy(self, self._calls, question).ask(self._range(start, end))
            except (BudgetError, CancelledError) as error:
                reason: FinishReason = "budget" if isinstance(error, BudgetError) else "cancelled"
                answer = Answer(None, reason, detail=str(error))
            step.result = answer.text if answer.text is not None else answer.finish_reason
        return answer
