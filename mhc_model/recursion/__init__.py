"""Questions about texts far longer than the context: verbs, recursion, a budget, a transcript."""

from mhc_model.recursion.endpoint import EndpointModel
from mhc_model.recursion.model import CancelToken, EngineModel, Generated, LanguageModel, index_for
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
    "Generated",
    "LanguageModel",
    "Passage",
    "Prompts",
    "Session",
    "SessionSettings",
    "Step",
    "TextIndex",
    "index_for",
    "run_program",
]
