from .endpoint import EndpointModel
from .model import (
    CancelToken,
    EngineModel,
    Gates,
    Generated,
    LanguageModel,
    as_generated,
    index_for,
    token_embedder,
)
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
