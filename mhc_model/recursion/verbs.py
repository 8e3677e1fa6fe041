"""The verbs of a session: what can be done with a text that exceeds the model's context.

`peek`, `search` and `chunks` look at the text and cost no tokens. `query`, `map` and `reduce` call
the model, each in one batch. A source that does not fit into the context is cut into chunks, each
is asked, and the partial answers are reduced to one: that is the recursion. Depth, tokens and steps
are bounded, and all of it is in the transcript.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mhc_model.errors import MHCError, SessionError
from mhc_model.recursion.calls import Calls, Usage
from mhc_model.recursion.model import CancelToken, Gates, LanguageModel
from mhc_model.recursion.search import Passage, SearchMode, TextIndex, Unit
from mhc_model.recursion.settings import NOT_FOUND, SessionSettings, answered
from mhc_model.recursion.transcript import Step, Transcript, recorded

Readable = Passage | str | Sequence[int]
"""What can be read: a passage, a range of characters (start, end), or a text of the caller's."""

MAX_QUESTION = 2000  # characters


@dataclass
class _Record:
    """What a step fills in while it runs."""

    result: Any = None
    usage_before: tuple[int, int] = (0, 0)
    below: list[int] = field(default_factory=lambda: [0, 0])


class Verbs:
    """Verbs over one text with one budget; see the module's docstring. For one thread."""

    def __init__(
        self,
        index: TextIndex,
        model: LanguageModel,
        settings: SessionSettings | None = None,
        gates: Gates = None,
        cancel: CancelToken | None = None,
        listener: Callable[[Step], None] | None = None,
    ) -> None:
        """Opens a session.

        Args:
            index: of the text; sessions may share it.
            model: answers over one chunk at a time.
            settings: limits; the defaults if left out.
            gates: of every call of the model, as the model takes them.
            cancel: ends the session from another thread.
            listener: sees every step as it ends.
        """
        self.index = index
        self.text = index.text
        self.settings = settings or SessionSettings.model_validate({})
        self.cancel = cancel or CancelToken()
        self.transcript = Transcript(listener)
        self._calls = Calls(model, self.settings, gates, self.cancel)
        self._open_steps: list[_Record] = []
        self._started = 0

    @property
    def usage(self) -> Usage:
        return self._calls.usage

    @property
    def level(self) -> int:
        """Verbs that are under way: the depth of the next one."""
        return len(self._open_steps)

    def close(self) -> None:
        """Ends the session: a call under way is cancelled, further ones are refused."""
        self.cancel.cancel()

    def peek(self, start: int, end: int, unit: Unit = "characters") -> str:
        """Characters or lines start .. end - 1 of the text.

        Raises:
            SessionError: if the range is outside the text, or longer than `max_peek` characters.
        """
        with self._step("peek", start=start, end=end, unit=unit) as step:
            found = self.text.passage(start, end, unit)
            if len(found.text) > self.settings.max_peek:
                raise SessionError(
                    f"the range has {len(found.text)} characters; one peek gives at most "
                    f"{self.settings.max_peek}: take a smaller range"
                )
            step.result = found.text
            return found.text

    def search(
        self,
        query: str,
        k: int | None = None,
        mode: SearchMode = "hybrid",
        start: int = 0,
        end: int | None = None,
    ) -> list[Passage]:
        """The k best passages of a range for a query, best first; see `TextIndex.search`."""
        k = self.settings.k if k is None else k
        with self._step("search", query=query, k=k, mode=mode, start=start, end=end) as step:
            whole = self._range(start, end)
            step.result = self.index.search(query, k, mode, whole.start, whole.end)
            return step.result

    def chunks(self, start: int = 0, end: int | None = None) -> list[Passage]:
        """The range cut into chunks of at most `chunk_tokens` that fit into the context."""
        with self._step("chunks", start=start, end=end) as step:
            whole = self._range(start, end)
            # Room for a question of about 64 tokens; `map` cuts again where that is too little.
            step.result = self._calls.chunk("word " * 60, self.text, whole.start, whole.end)
            return step.result

    def query(self, question: str, source: Readable) -> str:
        """The model's answer from one source; "not found" if it does not tell.

        Raises:
            SessionError: if the source does not fit and the depth is used up.
            BudgetError, CancelledError: before the model is called.
        """
        with self._step("query", question=question, source=_shown(source)) as step:
            check_question(question)
            step.result = self._read(question, [source])[0]
            return step.result

    def map(self, question: str, sources: Sequence[Readable]) -> list[str]:
        """The answer from each source, all in one batch; raises as `query`."""
        with self._step("map", question=question, sources=_shown(sources)) as step:
            check_question(question)
            if isinstance(sources, str) or not isinstance(sources, Sequence):
                raise SessionError("sources must be a list of passages, ranges or texts")
            step.result = self._read(question, sources)
            return step.result

    def reduce(self, question: str, answers: Sequence[str]) -> str:
        """One answer from partial answers, without those that are "not found"; raises as `query`.

        Where they do not fit into one prompt they are reduced in bundles, and the results again.
        """
        with self._step("reduce", question=question, answers=answers) as step:
            check_question(question)
            texts = isinstance(answers, Sequence) and not isinstance(answers, str)
            if not texts or not all(isinstance(answer, str) for answer in answers):
                raise SessionError("answers must be a list of texts")
            step.result = self._reduced(question, [answers])[0]
            return step.result

    def _read(self, question: str, sources: Sequence[Readable]) -> list[str]:
        """One answer a source, in one batch; sources that do not fit are cut, and reduced."""
        leaves: list[str] = []
        spans: list[tuple[int, int]] = []
        for source in sources:
            prompts = self._leaves(question, self._passage(source))
            spans.append((len(leaves), len(leaves) + len(prompts)))
            leaves += prompts
            if len(leaves) > self.settings.max_sources:
                raise SessionError(
                    f"this reads more than {self.settings.max_sources} chunks at once; map over "
                    f"fewer or smaller sources"
                )
        partial = self._calls.complete(leaves) if leaves else []
        groups = [partial[first:last] for first, last in spans]
        if all(len(group) == 1 for group in groups):
            return partial
        with self._step("reduce", question=question, answers=groups) as step:
            step.result = self._reduced(question, groups)
            return step.result

    def _leaves(self, question: str, source: Passage) -> list[str]:
        prompt = self._calls.query_prompt(question, source.text)
        if self._calls.fits(prompt):
            return [prompt]
        self._check_depth(
            self.level, f"the source of {len(source.text)} characters exceeds the context"
        )
        # A text of the caller's is cut as itself; a passage too, its own text is all that counts.
        text = type(self.text)(source.text)
        chunks = self._calls.chunk(question, text, 0, len(text))
        return [self._calls.query_prompt(question, chunk.text) for chunk in chunks]

    def _reduced(self, question: str, groups: Sequence[Sequence[str]]) -> list[str]:
        """One answer a group. Each level is one batch: bundles of answers that fit a prompt."""
        left = [_distinct(group) for group in groups]
        bundles = {
            number: self._bundles(question, group)
            for number, group in enumerate(left)
            if len(group) > 1
        }
        if bundles:
            calls = [part for parts in bundles.values() for part in parts if len(part) > 1]
            prompts = [self.settings.prompts.of_answers(question, part) for part in calls]
            results = iter(self._calls.complete(prompts))
            for number, parts in bundles.items():
                # A reduction that says "not found" loses what was found: the first part stands.
                merged = [
                    result if answered(result := next(results)) else part[0]
                    for part in parts
                    if len(part) > 1
                ]
                left[number] = _distinct(merged + [part[0] for part in parts if len(part) == 1])
            if any(len(group) > 1 for group in left):
                with self._step("reduce", question=question, answers=left) as step:
                    step.result = self._reduced(question, left)
                    return step.result
        return [group[0] if group else NOT_FOUND for group in left]

    def _bundles(self, question: str, answers: Sequence[str]) -> list[list[str]]:
        """Answers in as many as fit a prompt; each bundle but the last has at least two."""
        bundles: list[list[str]] = [[]]
        for answer in answers:
            wider = [*bundles[-1], answer]
            if self._calls.fits(self.settings.prompts.of_answers(question, wider)):
                bundles[-1] = wider
            elif len(bundles[-1]) > 1:
                bundles.append([answer])
            else:
                raise SessionError(
                    f"the context of {self._calls.model.context} tokens does not hold two partial "
                    f"answers; lower max_tokens or shorten the question"
                )
        return bundles

    def _range(self, start: int, end: int | None) -> Passage:
        return self.text.passage(start, len(self.text) if end is None else end)

    def _passage(self, source: Readable) -> Passage:
        if isinstance(source, Passage):
            return source
        if isinstance(source, str):
            if not source.strip():
                raise SessionError("a source is empty; give a passage, a range or a text")
            return Passage(0, len(source), source)
        if isinstance(source, Sequence) and len(source) == 2:
            return self.text.passage(*source)
        raise SessionError(
            f"{source!r:.200} is no source; give a passage, a range of two numbers, or a text"
        )

    def _check_depth(self, depth: int, why: str) -> None:
        if depth > self.settings.max_depth:
            raise SessionError(
                f"{why}, and max_depth {self.settings.max_depth} allows no deeper level: raise it "
                f"or read smaller sources"
            )

    @contextmanager
    def _step(self, verb: str, **arguments: Any) -> Iterator[_Record]:
        """Checks what every verb must, and records the step when it ends, also by an error."""
        self.cancel.check()
        depth = self.level
        self._check_depth(depth, f"{verb} is at depth {depth}")
        self._started += 1
        if self._started > self.settings.max_steps:
            raise SessionError(f"this session has called {self.settings.max_steps} verbs; no more")
        record = _Record(usage_before=self._spent())
        self._open_steps.append(record)
        begun, error = time.perf_counter(), None
        try:
            yield record
        except MHCError as fault:
            error = str(fault)
            raise
        finally:
            self._open_steps.pop()
            spent = [
                now - then for now, then in zip(self._spent(), record.usage_before, strict=True)
            ]
            own = [total - below for total, below in zip(spent, record.below, strict=True)]
            if self._open_steps:
                parent = self._open_steps[-1].below
                parent[:] = [a + b for a, b in zip(parent, spent, strict=True)]
            self.transcript.add(
                verb=verb,
                depth=depth,
                arguments={k: recorded(v, texts=False) for k, v in arguments.items()},
                result=recorded(record.result),
                error=error,
                prompt_tokens=own[0],
                completion_tokens=own[1],
                ms=round(1000 * (time.perf_counter() - begun), 3),
            )

    def _spent(self) -> tuple[int, int]:
        return self.usage.prompt_tokens, self.usage.completion_tokens


def check_question(question: str) -> None:
    if not isinstance(question, str) or not question.strip() or len(question) > MAX_QUESTION:
        raise SessionError(
            f"the question must be a text of 1 to {MAX_QUESTION} characters; this is "
            f"{recorded(question)!r:.200}"
        )


def _shown(source: Any) -> Any:
    return list(source) if isinstance(source, tuple) else source


def _distinct(answers: Sequence[str]) -> list[str]:
    """The answers that tell something, each once, in order."""
    telling = [answer for answer in answers if answered(answer)]
    return list({answer.casefold().strip(" ."): answer for answer in reversed(telling)}.values())[
        ::-1
    ]
