from .endpoint import EndpointModel
from .model import CancelToken, EngineModel, Generated, LanguageModel, index_for
from .program import run_program
from .search import Embedder, Passage, TextIndex
from .session import Session
from .settings import Prompts, SessionSettings
from .transcript import Answer, Step

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
