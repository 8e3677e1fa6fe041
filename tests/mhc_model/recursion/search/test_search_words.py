"""Words of a text and of a query: their stems, scripts without spaces, words that say nothing."""

from __future__ import annotations

import pytest

from mhc_model.recursion.search.words import query_terms, stem, words


@pytest.mark.parametrize(
    "group",
    [
        "hide hides hiding",
        "plan planned planning plans",
        "city cities",
        "key keys",
        "employ employed employment employs",
        "church churches",
        "captain captain's captains",
    ],
)
def test_inflections_meet(group):
    assert len({stem(word) for word in group.split()}) == 1


@pytest.mark.parametrize("pair", ["bus bu", "string str", "bring br", "wing w"])
def test_short_words_keep_their_endings(pair):
    first, second = pair.split()
    assert stem(first) != second


def test_words_of_unspaced_scripts_are_characters():
    assert [word for word, _ in words("東京タワー at 9")] == [*"東京タワー", "at", "9"]
    assert words("x" * 1000).__next__() == ("x" * 64, 0)


def test_stop_words_count_only_where_there_is_nothing_else():
    assert list(query_terms("Where is the key?")) == ["key"]
    assert list(query_terms("Who is he?")) == ["who", "is", "he"]
