"""BM25 over spans of a text. Needs no torch.

Axes: s spans, w distinct terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

# Robertson's usual values: saturation of a term's count, and how much length counts.
K1, B = 1.2, 0.75
_BLOCK = 2**20  # words of spans that are counted at a time: bounds the memory


class BM25:
    """Which spans of a text hold which terms, and BM25's weights of them.

    Attributes:
        idf: (w,) weight of each term.
        holders: spans that hold a term; those of term i are from offsets[i] to offsets[i + 1].
        weights: the term's saturated count in each of them.
        offsets: (w + 1,).
        count: s.
    """

    def __init__(
        self,
        holders: NDArray[np.int32],
        weights: NDArray[np.float32],
        offsets: NDArray[np.int64],
        idf: NDArray[np.float32],
        count: int,
    ) -> None:
        self.holders, self.weights = holders, weights
        self.offsets, self.idf = offsets, idf
        self.count = count

    @classmethod
    def of(
        cls,
        ids: NDArray[np.int32],
        places: NDArray[np.int64],
        spans: NDArray[np.int64],
        w: int,
        check: Callable[[], None] = lambda: None,
    ) -> BM25:
        """Counts.

        Args:
            ids: the term of each word of the text, 0 to w - 1.
            places: where each word starts, ascending.
            spans: (s, 2) start and end of each span.
            w: number of terms.
            check: called from time to time; may raise.
        """
        bounds = np.searchsorted(places, spans)  # (s, 2): a word belongs to where it starts
        terms, holders, found = _count(ids, bounds, max(1, w), check)
        order = np.argsort(terms, kind="stable")
        lengths = (bounds[:, 1] - bounds[:, 0]).astype(np.float32)
        holders, counts = holders[order], found[order].astype(np.float32)
        relative = lengths[holders] / max(1.0, float(lengths.mean()))
        saturated = counts * (K1 + 1) / (counts + K1 * (1 - B + B * relative))
        offsets = np.searchsorted(terms[order], np.arange(w + 1))
        frequency = np.diff(offsets)
        idf = np.log1p((len(spans) - frequency + 0.5) / (frequency + 0.5))
        return cls(
            holders, saturated.astype(np.float32), offsets, idf.astype(np.float32), len(spans)
        )

    def score(self, terms: Sequence[int]) -> NDArray[np.float64]:
        """(s,) sum over the terms; 0 where none occurs."""
        scores = np.zeros(self.count)
        for term in terms:
            part = slice(self.offsets[term], self.offsets[term + 1])
            scores[self.holders[part]] += self.idf[term] * self.weights[part]
        return scores


def _count(
    ids: NDArray[np.int32], bounds: NDArray[np.int64], w: int, check: Callable[[], None]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Terms, the spans that hold them, and how often: one entry a pair, by span and term."""
    lengths = bounds[:, 1] - bounds[:, 0]
    ends = np.cumsum(lengths)
    terms, holders, counts = [], [], []
    first = 0
    while first < len(bounds):
        check()
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _BLOCK, "right")))
        own = lengths[first:last]
        spans = np.repeat(np.arange(first, last), own)
        # The words of one span after the other, which may overlap.
        shift = np.repeat(bounds[first:last, 0] - (np.cumsum(own) - own), own)
        pairs, found = np.unique(spans * w + ids[np.arange(len(spans)) + shift], return_counts=True)
        terms.append(pairs % w)
        holders.append((pairs // w).astype(np.int32))
        counts.append(found)
        first = last
    empty = np.zeros(0, dtype=np.int64)
    return (
        np.concatenate([*terms, empty]),
        np.concatenate([*holders, empty.astype(np.int32)]),
        np.concatenate([*counts, empty]),
    )
