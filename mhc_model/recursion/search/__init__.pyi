from .index import Embedder, SearchMode, TextIndex
from .text import LongText, Passage, Unit, cut, windows

__all__ = [
    "Embedder",
    "LongText",
    "Passage",
    "SearchMode",
    "TextIndex",
    "Unit",
    "cut",
    "windows",
]
