"""Questions about texts far longer than the context: verbs, recursion, a budget, a transcript.

In: a text, a question or a program of verbs, and a language model. Out: an `Answer`, and every
`Step` that led to it. May import the ground, tokenizer, decoder, engine and policy.

    search/        passages of a text, found by words and by meaning
    model.py       the language model: an interface, and our engine behind it
    endpoint.py    the same over HTTP, at an OpenAI-compatible server
    settings.py    limits, prompts, what counts as an answer
    transcript.py  answers and steps
    calls.py       calls of the model within a budget
    verbs.py       peek, search, chunks, query, map, reduce
    strategy.py    what `ask` does: search, read, widen, reduce
    session.py     `Session`: the verbs, and `ask`
    program.py     programs of verbs, never run by Python; functions.py has what they may call
    command.py     `python -m mhc_model recurse`
"""

from mhc_model.recursion.endpoint import EndpointModel
from mhc_model.recursion.model import (
    CancelToken,
    EngineModel,
    Gates,
    Generated,
    LanguageModel,
    as_generated,
    index_for,
    token_embedder,
)
from mhc_model.recursion.program import run_program
from mhc_model.recursion.search import Embedder, Passage, TextIndex
from mhc_model.recursion.session import Session
from mhc_model.recursion.settings import Prompts, SessionSettings
from mhc_model.recursion.transcript import Answer, Step

__all__ = [
    "Answer",
    "CancelToken",
    "Embedder",
    "EndpointModel",
    "EngineModel",
    "Gates",
    "Generated",
    "LanguageModel",
    "Passage",
    "Prompts",
    "Session",
    "SessionSettings",
    "Step",
    "TextIndex",
    "as_generated",
    "index_for",
    "run_program",
    "token_embedder",
]
