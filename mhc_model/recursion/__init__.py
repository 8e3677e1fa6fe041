"""Questions about texts far longer than the context: verbs, recursion, a budget, a transcript."""

from mhc_model.recursion.endpoint import EndpointModel
from mhc_model.recursion.model import CancelToken, EngineModel, Generated, LanguageModel
from mhc_model.recursion.program import run_program
from mhc_model.recursion.prompts import Prompts
from mhc_model.recursion.search.index import Embedder, TextIndex
from mhc_model.recursion.search.text import Passage
from mhc_model.recursion.session import Session
from mhc_model.recursion.settings import SessionSettings
from mhc_model.recursion.sizes import index_for
from mhc_model.recursion.strategy import Answer
from mhc_model.recursion.transcript import Step

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
