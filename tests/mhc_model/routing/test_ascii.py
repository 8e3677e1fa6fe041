"""Pictures made of characters."""

from __future__ import annotations

from mhc_model.routing import bars, heatmap, plot


def test_pictures_of_characters():
    assert heatmap([[0.0, 1.0], [2.0, 0.1]]) == "|  @@|\n|@@..|"
    assert heatmap([[1.0]], 0.0, 2.0, ["x"]).startswith("x |")
    assert bars({"a": 1.0, "bb": 0.5}, width=4) == "a  |####| 1\nbb |##  | 0.5"
    drawn = plot({"up": [(0, 0), (1, 1)], "down": [(0, 1), (1, 0)]}, width=3, height=3)
    assert [line[2:] for line in drawn.splitlines()[:3]] == ["|x o", "|   ", "|o x"]
    assert drawn.endswith("o up   x down")
    assert plot({"flat": [(0.0, 2.0)]}, 4, 2)  # no span in either direction
