"""`python -m evals.control` on a model whose gates decide the style, and on one without meaning."""

from __future__ import annotations

import json

import pytest

from evals.__main__ import main as evals_main
from evals.control import figures_of
from evals.control.__main__ import main
from evals.problems import style_of
from evals.report import control_tables, read_control
from evals.results import read_results, read_samples
from mhc_model.errors import DataError

NAMES = [
    *("direct", "direct..worked 1/4", "direct..worked 2/4", "direct..worked 3/4", "worked"),
    "learned",
]


@pytest.fixture(scope="module")
def found(control):
    return read_control(control)


def lines_of(out):
    return (out / "samples.jsonl").read_text().splitlines()


def test_gates_with_a_meaning_are_seen_to_have_it(found, steered):
    points = {point["name"]: point for point in found["points"]}
    assert list(points) == NAMES
    for style in ("direct", "worked"):
        point = points[style]
        assert (point["behaviour"], point["style"]) == (style, style)
        assert point["all"]["n"] == steered.n
        assert point["all"]["styles"][style]["share"] >= 0.95
        assert point["all"]["leakage"]["share"] <= 0.05
    short, long = (points[name]["all"]["tokens"]["mean"] for name in ("direct", "worked"))
    assert short < 6 < 15 < long
    assert [points[name]["gate"] for name in NAMES[:5]] == [0.15, 0.325, 0.5, 0.675, 0.85]
    assert points["learned"]["gates"] == pytest.approx(4 * [points["learned"]["gates"][0]], abs=0.3)
    assert points["learned"]["all"]["leakage"] is None
    shares = [points[name]["all"]["styles"]["direct"]["share"] for name in NAMES[:5]]
    assert shares == sorted(shares, reverse=True)
    assert found["behaviours"]["direct"]["gates"] == [0.0, 0.3]
    assert found["problems"]["n"] == steered.n


def test_figures_are_those_of_the_samples(control, found):
    for point in found["points"]:
        samples = read_samples(control, point["name"])
        assert [sample["style"] for sample in samples] == [
            style_of(sample["completion"]) for sample in samples
        ]
        assert all(s["gates"] == pytest.approx(point["gates"], abs=1e-6) for s in samples)
        assert point["all"] == figures_of(samples, point["style"])
        assert point["levels"] == {}


def test_samples_are_those_of_an_evaluation(control, steered, tmp_path):
    line = ["--checkpoint", str(steered.checkpoint), "--data", str(steered.data)]
    line += ["--out", str(tmp_path / "out"), "--max-tokens", "40", "--device", "cpu"]
    assert evals_main([*line, "--gates", "worked"]) == 0
    rows = read_samples(control, "worked")
    for row, sample in zip(rows, read_samples(tmp_path / "out", "gsm8k"), strict=True):
        own = {key: value for key, value in row.items() if key not in ("style", "level")}
        assert own == {**sample, "task": "worked"}
    facts = read_results(tmp_path / "out")["tasks"]["gsm8k"]
    assert read_control(control)["problems"]["prompts_sha256"] == facts["prompts_sha256"]


def test_the_directory_has_the_run_the_figures_and_a_picture(control, found):
    assert {path.name for path in control.iterdir()} == {
        *("config.yaml", "run.json", "samples.jsonl"),
        *("control.json", "control.png", "control.svg"),
    }
    assert (control / "control.png").read_bytes().startswith(b"\x89PNG")
    ((title, table),) = control_tables(found)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert title == "All problems"
    assert [row[0] for row in rows[2:8]] == NAMES
    assert rows[0][-1] == "leakage"
    assert rows[2][1] == "0.15"
    assert float(rows[2][-1].split()[0]) <= 5.0
    assert rows[3][-1] == ""
    assert "brief" not in table  # no answer is


@pytest.fixture
def line(checkpoints, tmp_path):
    """A small run over a model whose behaviours mean nothing, into tmp_path/out."""
    return [
        *("--checkpoint", str(checkpoints[0] / "named"), "--out", str(tmp_path / "out")),
        *("--data", "builtin:1,2", "--limit", "6", "--max-tokens", "5", "--between", "1"),
        *("--device", "cpu"),
    ]


def test_levels_and_gates_that_are_no_single_number(line, tmp_path, capsys):
    assert main(line) == 0
    printed = capsys.readouterr().out
    for words in ("All problems", "Level 1", "Level 2", "control.png", "no style", "0.20 to 1.00"):
        assert words in printed
    found = read_control(tmp_path / "out")
    point = found["points"][1]
    assert point["name"] == "direct..worked 1/2"
    assert point["gates"] == pytest.approx([0.1, 0.1, 0.5, 0.5])
    assert point["gate"] is None
    assert list(point["levels"]) == ["1", "2"]
    assert [entry["n"] for entry in point["levels"].values()] == [3, 3]


def test_a_run_that_was_cut_goes_on(line, tmp_path):
    out = tmp_path / "out"
    assert main(line) == 0
    whole, found = lines_of(out), read_control(out)
    assert main(line) == 0  # all is there
    assert read_control(out) == found
    (out / "control.json").unlink()
    # In the middle of the second point's samples, and of a line.
    kept = "\n".join(whole[:8]) + "\n" + whole[8][:20]
    (out / "samples.jsonl").write_text(kept)
    assert main(line) == 0
    assert lines_of(out) == whole
    again = read_control(out)
    assert {**again, "measured": None} == {**found, "measured": None}
    assert [again["measured"][name]["samples"] for name in again["measured"]] == [4, 6, 6]


def test_errors(line, checkpoints, tmp_path, capsys):
    def refused(*arguments: str) -> str:
        assert main([*line, *arguments]) == 2
        return capsys.readouterr().err

    for name, words in (("plain", "is plain (mhc: null)"), ("mhc", "has no behaviours")):
        error = refused("--checkpoint", str(checkpoints[0] / name))
        assert words in error
        assert "behaviours: {direct: {gates: [0.0, 0.3]}" in error
    assert "no problems at 'absent.jsonl'" in refused("--data", "absent.jsonl")
    assert not (tmp_path / "out").exists()
    assert main(line) == 0
    capsys.readouterr()
    assert "settings.between: 1 and 2" in refused("--between", "2")
    (tmp_path / "out" / "control.json").write_text(json.dumps({"tasks": {}}))
    with pytest.raises(DataError, match="it has no 'checkpoint'"):
        read_control(tmp_path / "out")
