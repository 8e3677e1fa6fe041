"""A long text, cut into passages that can be found by words and by meaning.

In: a text, a query. Out: `Passage`s, best first. May import the ground (errors).

    text.py   `LongText` and its passages; windows, and cuts at borders of sentences
    words.py  words, stems, terms of a query
    index.py  `TextIndex`: BM25, embeddings, and both
"""

from mhc_model.recursion.search.index import Embedder, SearchMode, TextIndex
from mhc_model.recursion.search.text import LongText, Passage, Unit, cut, windows

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
