"""Search in a long text: BM25 and embeddings over overlapping passages, and their fusion.

Axes: p passages, w distinct terms, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhc_model.errors import SessionError
from mhc_model.recursion.search.lexical import read_text
from mhc_model.recursion.search.text import LongText, Passage
from mhc_model.recursion.search.words import query_terms

SearchMode = Literal["hybrid", "lexical", "embedding"]
Embed = Callable[[Sequence[str]], Tensor]

MAX_RESULTS = 100
MAX_QUERY = 2000  # characters

# Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): 1 / (60 + rank), summed over rankings.
# Embeddings count half: alone they find less (docs/recursion.md), and untrained ones nothing.
FUSION, EMBEDDING_SHARE = 60, 0.5
_BLOCK = 2048  # terms embedded at a time: bounds the memory of indexing


@dataclass(frozen=True)
class Embedder:
    """How texts become vectors.

    Attributes:
        embed: texts to (b, c) float32.
        unit: "words" if it is meant for single words, which are then averaged by their weight;
            "texts" if it reads a stretch of text in one piece.
    """

    embed: Embed
    unit: Literal["words", "texts"]


class TextIndex:
    """Passages of a text and what is needed to search them. Immutable after construction.

    A passage is as good as its best window, a stretch of a sentence or two: of words that stand
    together more is true than of the same words pages apart. Per passage the index keeps offsets,
    the counts of its terms and, with an embedder, a vector for each of its about eight windows;
    the text itself is held once.
    """

    def __init__(
        self,
        text: str,
        passage_chars: int = 960,
        overlap_chars: int = 240,
        embedder: Embedder | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Reads the text once; 200,000 tokens take about a second, and more with an embedder.

        Args:
            text: not empty.
            passage_chars: longest passage.
            overlap_chars: shared by neighbouring passages; what is not longer than this lies whole
                in at least one passage.
            embedder: for embedding and hybrid search; without it, or in a text without words, all
                search is lexical.
            check: called often while the text is read; what it raises ends the reading. None asks
                nobody.

        Raises:
            SessionError: for an empty text, an overlap that is no smaller than the passage, or a
                text of too many passages.
        """
        self.text = LongText(text)
        self.sizes = (passage_chars, overlap_chars)
        check = check or (lambda: None)
        found = read_text(text, passage_chars, overlap_chars, check)
        self.spans, self._window_spans = found.spans, found.window_spans  # (p, 2), (windows, 2)
        self._terms, self._surface = found.terms, found.surface  # a word for each: what is embedded
        self._words, self._windows = found.passages, found.windows
        # The windows that lie whole in passage i are those from _inside[i, 0] to _inside[i, 1].
        self._inside = np.stack(
            [
                np.searchsorted(self._window_spans[:, 0], self.spans[:, 0]),
                np.searchsorted(self._window_spans[:, 1], self.spans[:, 1], "right"),
            ],
            axis=1,
        )
        self._embedder = embedder
        self._vectors: Tensor | None = None
        if embedder is not None and self._surface:
            self._vectors = self._embed_windows(embedder, check)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Passage:
        start, end = map(int, self.spans[number])
        return Passage(start, end, self.text.text[start:end])

    @property
    def has_embeddings(self) -> bool:
        return self._vectors is not None

    def search(
        self,
        query: str,
        k: int = 5,
        mode: SearchMode = "hybrid",
        start: int = 0,
        end: int | None = None,
    ) -> list[Passage]:
        """The k best passages within a range of characters, best first; fewer if fewer match.

        "hybrid" fuses the lexical and the embedding ranking, and is the lexical one where the
        index has no embeddings.

        Raises:
            SessionError: if k, the query's length or the mode is not allowed, or the mode needs
                embeddings that the index does not have.
        """
        self._check(query, k, mode)
        end = len(self.text) if end is None else end
        outside = (self.spans[:, 1] <= start) | (self.spans[:, 0] >= end)
        rankings = []
        if mode != "embedding":
            rankings.append(self._lexical(query))
        if mode != "lexical" and self.has_embeddings:
            rankings.append(self._similarity(query))
        for scores in rankings:
            scores[outside] = -np.inf
        scores = rankings[0] if len(rankings) == 1 else _fuse(*rankings)
        best = np.argsort(-scores, kind="stable")[:k]
        return [
            Passage(found.start, found.end, found.text, round(float(scores[number]), 6))
            for number in best
            if np.isfinite(scores[number])
            for found in [self[int(number)]]
        ]

    def _check(self, query: str, k: int, mode: str) -> None:
        if not isinstance(query, str) or not query.strip():
            raise SessionError(f"the query is {query!r}; it must be a text that is not empty")
        if len(query) > MAX_QUERY:
            raise SessionError(f"the query has {len(query)} characters; at most {MAX_QUERY}")
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MAX_RESULTS:
            raise SessionError(f"k is {k!r}; it must be a whole number from 1 to {MAX_RESULTS}")
        if mode not in get_args(SearchMode):
            raise SessionError(f"mode is {mode!r}; it must be one of {get_args(SearchMode)}")
        if mode == "embedding" and not self.has_embeddings:
            raise SessionError("this index has no embeddings; search with mode 'lexical'")

    def _lexical(self, query: str) -> NDArray[np.float64]:
        """(p,) BM25 of the passage and of its best window; -inf where no term occurs."""
        numbers = [self._terms[term] for term in query_terms(query) if term in self._terms]
        scores = self._words.score(numbers)
        best = self._best_inside(self._windows.score(numbers))
        return np.where(scores > 0, scores + np.maximum(best, 0.0), -np.inf)

    def _similarity(self, query: str) -> NDArray[np.float64]:
        """(p,) cosine between the query's vector and that of the passage's best window."""
        if self._vectors is None or self._embedder is None:
            raise SessionError("this index has no embeddings; search with mode 'lexical'")
        if self._embedder.unit == "texts":
            vector = self._centred([query], self._embedder)[0]
        else:
            terms = query_terms(query)
            if not terms:  # no word to be similar to
                return self._best_inside(np.zeros(len(self._vectors)))
            rarest = float(self._windows.idf.max())
            idf = [
                rarest if number is None else float(self._windows.idf[number])
                for number in map(self._terms.get, terms)
            ]
            vectors = self._centred([f" {word}" for word in terms.values()], self._embedder)
            vector = _unit(torch.tensor(idf) @ vectors)
        return self._best_inside((self._vectors @ vector).double().numpy())

    def _best_inside(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(windows,) -> (p,) the greatest value of the windows in each passage; -inf without."""
        first, last = self._inside.T
        padded = np.append(values, -np.inf)
        best = np.maximum.reduceat(padded, self._inside.ravel())[::2]
        return np.where(last > first, best, -np.inf)

    def _embed_windows(self, embedder: Embedder, check: Callable[[], None]) -> Tensor:
        """(windows, c) of unit length: of their texts, or of their terms by BM25's weights."""
        if embedder.unit == "texts":
            texts = [self.text.text[start:end] for start, end in self._window_spans]
            self._centre = _mean(texts, embedder)
            parts = []
            for at in range(0, len(texts), _BLOCK):
                check()
                parts.append(self._centred(texts[at : at + _BLOCK], embedder))
            return torch.cat(parts)
        # With the space before it a word is the token that it is within a text.
        found = [f" {word}" for word in self._surface]
        self._centre = _mean(found, embedder)
        total = torch.zeros(len(self._window_spans), len(self._centre))
        for first in range(0, len(found), _BLOCK):
            check()
            vectors = self._centred(found[first : first + _BLOCK], embedder)
            self._add_terms(total, vectors, first)
        return total.div_(total.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    def _add_terms(self, total: Tensor, vectors: Tensor, first: int) -> None:
        """Adds the terms first, first + 1, ... with these vectors to the windows' sums."""
        bm25 = self._windows
        begin, stop = bm25.offsets[first], bm25.offsets[first + len(vectors)]
        for at in range(begin, stop, 8 * _BLOCK):
            part = slice(at, min(at + 8 * _BLOCK, stop))
            terms = np.searchsorted(bm25.offsets, np.arange(part.start, part.stop), "right") - 1
            weights = torch.from_numpy(bm25.idf[terms] * bm25.weights[part])
            rows = vectors[torch.from_numpy(terms - first)] * weights[:, None]
            total.index_add_(0, torch.from_numpy(bm25.holders[part].astype(np.int64)), rows)

    def _centred(self, texts: Sequence[str], embedder: Embedder) -> Tensor:
        """(b, c) of unit length, without what all of the text has in common."""
        return _unit(embedder.embed(texts).cpu().float() - self._centre)


def _mean(texts: list[str], embedder: Embedder) -> Tensor:
    """(c,) mean vector of at most _BLOCK of the texts, spread evenly."""
    return embedder.embed(texts[:: -(-len(texts) // _BLOCK)]).cpu().float().mean(0)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _fuse(lexical: NDArray[np.float64], similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """(p,) reciprocal rank fusion; -inf where neither ranking has the passage."""
    total = np.full(len(lexical), -np.inf)
    for scores, share in ((lexical, 1.0), (similarity, EMBEDDING_SHARE)):
        order = np.argsort(-scores, kind="stable")
        order = order[np.isfinite(scores[order])]
        before = np.where(np.isfinite(total[order]), total[order], 0.0)
        total[order] = before + share / (FUSION + 1 + np.arange(len(order)))
    return total
