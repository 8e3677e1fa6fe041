"""Windows over a text, and its characters and lines."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planted_facts import generated_text
from mhc_model.errors import SessionError
from mhc_model.recursion.search import LongText, cut, windows


@given(
    st.text(alphabet="ab \n", min_size=1, max_size=300),
    st.integers(1, 60),
    st.integers(0, 59),
)
def test_windows_cover_the_text_and_overlap(text, size, overlap):
    overlap = min(overlap, size - 1)
    spans = list(windows(cut(text, size, overlap), size))
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert all(0 < end - start <= size for start, end in spans)
    for (start, end), (following, _) in itertools.pairwise(spans):
        assert start < following <= end - overlap


def test_every_short_stretch_lies_whole_in_a_window():
    text = generated_text(2000, seed=1)
    spans = list(windows(cut(text, 400, 100), 400))
    for start in range(0, len(text) - 100, 7):
        assert any(first <= start and start + 100 <= last for first, last in spans)


def test_lines_and_characters():
    text = LongText("one\ntwo\n\nfour\n")
    assert text.lines == 4
    assert text.passage(1, 3, "lines").text == "two\n\n"
    assert text.passage(3, 99, "lines").text == "four\n"
    assert text.passage(4, 7).text == "two"
    for arguments, reason in (
        ((14, 15), "0 to 13"),
        ((-1, 3), "0 to 13"),
        ((3, 3), "after start"),
        ((0, 1, "words"), "characters"),
        ((0.0, 1), "whole number"),
    ):
        with pytest.raises(SessionError, match=reason):
            text.passage(*arguments)
