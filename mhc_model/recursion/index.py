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
from mhc_model.recursion.text import LongText, Passage, cut, windows
from mhc_model.recursion.words import query_terms, stem, words

SearchMode = Literal["hybrid", "lexical", "embedding"]
Embed = Callable[[Sequence[str]], Tensor]

MAX_RESULTS = 100
MAX_QUERY = 2000  # characters

# Robertson's usual values: saturation of a term's count, and how much length counts.
K1, B = 1.2, 0.75
# Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): 1 / (60 + rank), summed over rankings.
FUSION = 60
_BLOCK = 2048  # terms embedded at a time: bounds the memory of indexing


@dataclass(frozen=True)
class Embedder:
    """How texts become vectors.

    Attributes:
        embed: texts to (b, c) float32.
        unit: "words" if it is meant for single words, which a passage then averages by their
            weight; "passages" if it reads a passage in one piece.
    """

    embed: Embed
    unit: Literal["words", "passages"]


class TextIndex:
    """Passages of a text and what is needed to search them. Immutable after construction.

    Per passage it keeps two offsets, the counts of its terms and, with an embedder, one vector:
    the text itself is held once.
    """

    def __init__(
        self,
        text: str,
        passage_chars: int = 960,
        overlap_chars: int = 240,
        embedder: Embedder | None = None,
    ) -> None:
        """Reads the text once; 200,000 tokens take about a second, and more with an embedder.

        Args:
            text: not empty.
            passage_chars: longest passage.
            overlap_chars: shared by neighbouring passages; what is not longer than this lies whole
                in at least one passage.
            embedder: for embedding and hybrid search; without it all search is lexical.

        Raises:
            SessionError: for an empty text or an overlap that is no smaller than the passage.
        """
        self.text = LongText(text)
        starts = cut(text, passage_chars, overlap_chars)
        self.spans = np.array(list(windows(starts, passage_chars)), dtype=np.int64)  # (p, 2)
        self._terms: dict[str, int] = {}
        self._surface: list[str] = []  # a word of the text for each term: what is embedded
        self._count(text)
        self._embedder = embedder
        self._vectors: Tensor | None = None
        if embedder is not None:
            self._centre = torch.zeros(())
            self._vectors = _unit(self._embed_passages(embedder))

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
        scores = rankings[0] if len(rankings) == 1 else _fuse(rankings)
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

    def _count(self, text: str) -> None:
        """Fills the postings: for each term the passages that hold it and how often."""
        ids, places = [], []
        for word, place in words(text):
            term = stem(word)
            number = self._terms.setdefault(term, len(self._terms))
            if number == len(self._surface):
                self._surface.append(word)
            ids.append(number)
            places.append(place)
        term_ids = np.array(ids, dtype=np.int32)
        bounds = np.searchsorted(np.array(places, dtype=np.int64), self.spans)  # (p, 2)
        rows = [np.unique(term_ids[a:b], return_counts=True) for a, b in bounds]
        terms = np.concatenate([row[0] for row in rows])
        counts = np.concatenate([row[1] for row in rows]).astype(np.float32)
        passages = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row[0]) for row in rows])
        order = np.argsort(terms, kind="stable")
        lengths = (bounds[:, 1] - bounds[:, 0]).astype(np.float32)
        relative = lengths / max(1.0, float(lengths.mean()))
        self._passages: NDArray[np.int32] = passages[order]
        counts, relative = counts[order], relative[self._passages]
        self._weights = counts * (K1 + 1) / (counts + K1 * (1 - B + B * relative))
        self._offsets = np.searchsorted(terms[order], np.arange(len(self._terms) + 1))
        frequency = np.diff(self._offsets)
        self._idf = np.log1p((len(rows) - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)

    def _lexical(self, query: str) -> NDArray[np.float64]:
        """(p,) BM25; -inf where no term occurs."""
        scores = np.full(len(self), -np.inf)
        for term in query_terms(query):
            number = self._terms.get(term)
            if number is None:
                continue
            part = slice(self._offsets[number], self._offsets[number + 1])
            held = self._passages[part]
            before = np.where(np.isfinite(scores[held]), scores[held], 0.0)
            scores[held] = before + self._idf[number] * self._weights[part]
        return scores

    def _similarity(self, query: str) -> NDArray[np.float64]:
        """(p,) cosine between the query's vector and each passage's."""
        if self._vectors is None or self._embedder is None:
            raise SessionError("this index has no embeddings; search with mode 'lexical'")
        if self._embedder.unit == "passages":
            vector = _unit(self._embedder.embed([query]).cpu().float() - self._centre)[0]
        else:
            terms = query_terms(query)
            rarest = float(self._idf.max())
            idf = [
                rarest if number is None else float(self._idf[number])
                for number in map(self._terms.get, terms)
            ]
            vectors = self._embed_words(list(terms.values()), self._embedder)
            vector = _unit(torch.tensor(idf) @ vectors)
        return (self._vectors @ vector).double().numpy()

    def _embed_passages(self, embedder: Embedder) -> Tensor:
        """(p, c): of the passages themselves, or of their terms weighted as BM25 weights them."""
        if embedder.unit == "passages":
            texts = (self[number].text for number in range(len(self)))
            vectors = torch.cat([embedder.embed([text]).cpu().float() for text in texts])
            self._centre = vectors.mean(0)
            return vectors - self._centre
        total: Tensor | None = None
        for first in range(0, len(self._surface), _BLOCK):
            last = min(first + _BLOCK, len(self._surface))
            vectors = self._embed_words(self._surface[first:last], embedder, centre=first == 0)
            if total is None:
                total = torch.zeros(len(self), vectors.shape[1])
            self._add_terms(total, vectors, first)
        if total is None:
            raise SessionError("the text holds no words; leave the embedder out")
        return total

    def _add_terms(self, total: Tensor, vectors: Tensor, first: int) -> None:
        """Adds the terms first, first + 1, ... with these vectors to the passages' sums."""
        begin, stop = self._offsets[first], self._offsets[first + len(vectors)]
        for at in range(begin, stop, 8 * _BLOCK):
            part = slice(at, min(at + 8 * _BLOCK, stop))
            number = np.searchsorted(self._offsets, np.arange(part.start, part.stop), "right") - 1
            weights = torch.from_numpy(self._idf[number] * self._weights[part])
            rows = vectors[torch.from_numpy(number - first)] * weights[:, None]
            total.index_add_(0, torch.from_numpy(self._passages[part].astype(np.int64)), rows)

    def _embed_words(self, found: list[str], embedder: Embedder, centre: bool = False) -> Tensor:
        """(b, c) of unit length, without what all words have in common."""
        # With the space before it a word is the token that it is within a text.
        vectors = embedder.embed([f" {word}" for word in found]).cpu().float()
        if centre:
            self._centre = vectors.mean(0)
        return _unit(vectors - self._centre)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _fuse(rankings: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(p,) reciprocal rank fusion; -inf where no ranking has the passage."""
    total = np.full(len(rankings[0]), -np.inf)
    for scores in rankings:
        order = np.argsort(-scores, kind="stable")
        order = order[np.isfinite(scores[order])]
        before = np.where(np.isfinite(total[order]), total[order], 0.0)
        total[order] = before + 1.0 / (FUSION + 1 + np.arange(len(order)))
    return total
