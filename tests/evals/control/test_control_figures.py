"""Points between behaviours, and figures of samples: pure functions, worked out by hand."""

from __future__ import annotations

import pytest

from evals.control import control_points, figures_by_level, figures_of
from evals.gate_choice import GateChoice
from evals.statistics import accuracy_entry, mean_entry, wilson_interval
from mhc_model.config import ModelConfig
from mhc_model.engine import Engine
from mhc_model.errors import ConfigError
from mhc_model.settings import validate_settings

THREE = {
    "worked": {"gates": [[0.6, 1.0], [1.0, 1.0], [0.2, 0.4]]},
    "terse": {"gates": [0.0, 0.2], "style": "direct"},
    "kind": {"gates": [0.2, 0.6], "at": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]},
}


def samples() -> list[dict]:
    """Six direct answers of level 1, four of other styles of level 2."""
    styles = 6 * ["direct"] + ["worked", "worked", "brief", None]
    return [
        {"style": style, "strict": i % 3 == 0, "tokens": 5 * i, "level": 1 if i < 6 else 2}
        for i, style in enumerate(styles)
    ]


def test_figures_are_those_of_the_samples():
    found = figures_of(samples(), "direct")
    assert found["n"] == 10
    counts = {name: share["count"] for name, share in found["styles"].items()}
    assert counts == {"direct": 6, "brief": 1, "worked": 2, "none": 1}
    assert found["styles"]["worked"]["share"] == 0.2
    assert found["styles"]["worked"]["wilson_95"] == list(wilson_interval(2, 10))
    assert found["strict"] == accuracy_entry(4, 10)
    assert found["tokens"] == mean_entry([5 * i for i in range(10)])
    assert found["tokens"]["mean"] == 22.5
    assert found["leakage"]["count"] == 4  # an answer without a style leaks, too
    assert found["leakage"]["wilson_95"] == list(wilson_interval(4, 10))
    assert figures_of(samples(), None)["leakage"] is None


def test_levels_have_figures_of_their_own_where_there_are_several():
    found = figures_by_level(samples(), "worked")
    assert list(found) == ["1", "2"]
    assert found["1"] == figures_of(samples()[:6], "worked")
    assert (found["1"]["leakage"]["count"], found["2"]["leakage"]["count"]) == (6, 2)
    assert figures_by_level(samples()[:6], "worked") == {}
    assert figures_by_level([{**one, "level": None} for one in samples()], None) == {}


def test_neighbours_are_joined_by_straight_lines(tiny_model):
    model = tiny_model(behaviours=THREE)
    points = control_points(model.config, 3)
    assert [point.name for point in points] == [
        *("terse", "terse..kind 1/4", "terse..kind 2/4", "terse..kind 3/4"),
        *("kind", "kind..worked 1/4", "kind..worked 2/4", "kind..worked 3/4"),
        *("worked", "learned"),
    ]
    assert [point.place for point in points] == [*(i / 4 for i in range(9)), None]
    named = {point.name: (point.behaviour, point.style) for point in points}
    assert named["terse"] == ("terse", "direct")
    assert named["kind"] == ("kind", None)
    assert named["worked"] == ("worked", "worked")
    assert named["kind..worked 1/4"] == named["learned"] == (None, None)
    engine = Engine(model)
    gates = {point.name: GateChoice(point.gates).fixed(engine).tolist() for point in points}
    kind, worked = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.8, 0.8, 1.0, 1.0, 0.3, 0.3]
    assert gates["kind"] == pytest.approx(kind)
    assert gates["worked"] == pytest.approx(worked)
    between = [0.25 * k + 0.75 * w for k, w in zip(kind, worked, strict=True)]
    assert gates["kind..worked 3/4"] == pytest.approx(between)
    assert gates["learned"] == pytest.approx(model.learned_gates().tolist())


def test_points_can_be_left_out_or_few(tiny_config):
    names = [point.name for point in control_points(tiny_config(behaviours=THREE), 0)]
    assert names == ["terse", "kind", "worked", "learned"]
    one = tiny_config(behaviours={"worked": THREE["worked"]})
    assert [point.name for point in control_points(one, 3)] == ["worked", "learned"]


def test_models_without_behaviours_are_told_what_to_do(tiny_config):
    for config, what in (
        (tiny_config(), "runs/x has no behaviours"),
        (tiny_config(plain=True), r"runs/x is plain \(mhc: null\)"),
    ):
        with pytest.raises(ConfigError, match=what + r".*train one with behaviours.*direct: \{"):
            control_points(config, 3, "runs/x")
    values = tiny_config(behaviours=THREE).model_dump()
    assert validate_settings(ModelConfig, values, "t").behaviours["terse"].style == "direct"
