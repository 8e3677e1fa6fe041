"""The words of a text, its passages and windows, and their counts: what costs no model.

A long text takes seconds of Python, in which the threads of the same process come to a crawl: a
server's completions among them. So it is read in a process of its own, which ends with whoever
waits for it. Needs no torch.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhc_model.errors import SessionError
from mhc_model.recursion.search.bm25 import BM25
from mhc_model.recursion.search.text import cut, windows
from mhc_model.recursion.search.words import stem, words

# Size and overlap of windows, as shares of a passage's.
WINDOW = (1 / 4, 1 / 8)
MAX_WINDOWS = 2**16  # of an index: each has a vector
ELSEWHERE = 200_000  # characters of a text that is read in another process
_OFTEN = 2**14  # words between two looks at whether somebody still waits
_POLL_S = 0.02
_ARRAYS = ("holders", "weights", "offsets", "idf")

Check = Callable[[], None]


@dataclass(frozen=True)
class Lexical:
    """What is known of a text without a model.

    Attributes:
        spans: (p, 2) start and end of each passage.
        window_spans: (v, 2) those of the windows.
        terms: term -> its number.
        surface: a word of the text for each term.
        passages: counts of the passages.
        windows: counts of the windows.
    """

    spans: NDArray[np.int64]
    window_spans: NDArray[np.int64]
    terms: dict[str, int]
    surface: list[str]
    passages: BM25
    windows: BM25


def read_text(text: str, size: int, overlap: int, check: Check = lambda: None) -> Lexical:
    """Reads a text: a long one in a process of its own.

    Args:
        text: not empty.
        size: characters of a passage.
        overlap: characters that neighbours share.
        check: called often; what it raises ends the reading.

    Raises:
        SessionError: for an overlap that is no smaller than the size, or more windows than an index
            may have.
    """
    check()
    windows_of(size)
    if (8 * len(text)) // size > 2 * MAX_WINDOWS:
        raise SessionError(
            f"the text has {len(text)} characters and a passage {size}: an index has at most "
            f"{MAX_WINDOWS} windows, eight a passage; take larger passages or a shorter text"
        )
    if len(text) < ELSEWHERE:
        return read_here(text, size, overlap, check)
    return _read_elsewhere(text, size, overlap, check)


def windows_of(size: int) -> tuple[int, int]:
    """Size and overlap of the windows of passages of a size."""
    width = max(2, round(WINDOW[0] * size))
    return width, min(width - 1, max(2, round(WINDOW[1] * size)))


def read_here(text: str, size: int, overlap: int, check: Check = lambda: None) -> Lexical:
    """As `read_text`, in this process whatever the length."""
    spans = np.array(list(windows(cut(text, size, overlap), size)), dtype=np.int64)
    terms: dict[str, int] = {}
    surface: list[str] = []
    ids: list[int] = []
    places: list[int] = []
    for word, place in words(text):
        number = terms.setdefault(stem(word), len(terms))
        if number == len(surface):
            surface.append(word)
        ids.append(number)
        places.append(place)
        if not len(ids) % _OFTEN:
            check()
    found = (np.array(ids, dtype=np.int32), np.array(places, dtype=np.int64))
    width, shared = windows_of(size)
    window_spans = np.array(list(windows(cut(text, width, shared), width)), dtype=np.int64)
    return Lexical(
        spans,
        window_spans,
        terms,
        surface,
        BM25.of(*found, spans, len(terms), check),
        BM25.of(*found, window_spans, len(terms), check),
    )


def _read_elsewhere(text: str, size: int, overlap: int, check: Check) -> Lexical:
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mhc_model.recursion.search.worker"]
    with TemporaryFile() as given, TemporaryFile() as result, TemporaryFile() as said:
        given.write(json.dumps({"size": size, "overlap": overlap}).encode() + b"\n")
        given.write(text.encode("utf-8", "surrogatepass"))
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=result, stderr=said, env=environment
        )
        try:
            while process.poll() is None:
                check()
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines() or ["nothing said"]
            raise SessionError(f"the text could not be read: {lines[-1]}")
        result.seek(0)
        return unpack(result.read())


def pack(found: Lexical) -> bytes:
    """As bytes that `unpack` takes."""
    arrays: dict[str, Any] = {"spans": found.spans, "window_spans": found.window_spans}
    for name, counts in (("passages", found.passages), ("windows", found.windows)):
        arrays |= {f"{name}_{part}": getattr(counts, part) for part in _ARRAYS}
        arrays[f"{name}_count"] = np.array(counts.count)
    # No word has a line's end in it.
    for name, texts in (("terms", list(found.terms)), ("surface", found.surface)):
        arrays[name] = np.frombuffer("\n".join(texts).encode("utf-8", "surrogatepass"), np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def unpack(content: bytes) -> Lexical:
    """What `pack` packed; nothing is unpickled."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        texts = {
            name: arrays[name].tobytes().decode("utf-8", "surrogatepass").split("\n")
            for name in ("terms", "surface")
        }
        terms = texts["terms"] if texts["terms"] != [""] else []
        counts = [
            BM25(
                **{part: arrays[f"{name}_{part}"] for part in _ARRAYS},
                count=int(arrays[f"{name}_count"]),
            )
            for name in ("passages", "windows")
        ]
        return Lexical(
            arrays["spans"],
            arrays["window_spans"],
            {term: number for number, term in enumerate(terms)},
            texts["surface"] if terms else [],
            *counts,
        )
