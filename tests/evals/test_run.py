"""The evaluation command, on real checkpoints of tiny random models."""

from __future__ import annotations

import json
import re

import pytest

from evals.__main__ import main
from evals.problems import load_problems


@pytest.fixture(scope="module")
def outs(evaluate):
    """plain, mHC with learned gates, mHC with closed gates."""
    return [evaluate("plain"), evaluate("mhc"), evaluate("mhc", "--gates", "0")]


def results_of(out):
    return json.loads((out / "results.json").read_text())


def samples_of(out, task=None):
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return [row for row in rows if task in (None, row["task"])]


def test_results_say_what_was_measured_and_samples_bear_it_out(outs, checkpoints):
    results, samples = results_of(outs[2]), samples_of(outs[2], "gsm8k")
    assert results["checkpoint"]["content_hash"] == checkpoints[1]["mhc"]
    assert results["gates"] == {"description": "0", "mean": [0.0] * 4}
    assert {"torch", "python"} <= results["versions"].keys()
    task = results["tasks"]["gsm8k"]
    assert (task["n"], task["n_shot"], task["max_tokens"]) == (8, 0, 8)
    for extraction in ("strict", "flexible"):
        assert task[extraction]["correct"] == sum(sample[extraction] for sample in samples)
        low, high = task[extraction]["wilson_95"]
        assert low <= task[extraction]["accuracy"] <= high
    assert [s["id"] for s in samples] == [p.id for p in load_problems("builtin:1", limit=8)]
    assert all(s["gates"] == [0.0] * 4 for s in samples)
    assert results["tasks"]["bpb"]["documents"] == 8
    assert {path.name for path in outs[2].iterdir()} == {
        "results.json",
        "samples.jsonl",
        "run.json",
    }
    assert set(results["measured"]["tasks"]) == {"gsm8k", "bpb"}
    assert results["machine"]["device"] == "cpu"


def test_gates_reach_the_model(outs):
    plain, learned, closed = (results_of(out)["tasks"]["bpb"]["bits_per_byte"] for out in outs)
    assert len({plain, learned, closed}) == 3
    assert results_of(outs[0])["gates"]["description"] == "none: a plain model"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mhc", ["--gates", "policy:nowhere"], "nowhere is no policy directory"),
        ("mhc", ["--gates", "1.1"], r"gate 0 is 1\.1; allowed: .*\[0, 1\]"),
        ("mhc", ["--gates", "0,1,0"], "3 gates given; allowed"),
        ("mhc", ["--gates", "high"], "gates are 'high'; the names of this model are learned; allo"),
        ("mhc", ["--gates", "0.5:high"], "the names of this model are learned"),
        ("mhc", ["--gates", "0,x"], "gates are '0,x'; accepted: learned; .*policy:DIR"),
        ("mhc", ["--gates", "none.json"], "none.json cannot be read"),
        ("plain", ["--gates", "1"], "this model is plain"),
        ("absent", [], "absent is not a directory"),
        ("mhc", ["--data", "absent.jsonl"], "no problems at 'absent.jsonl'; accepted"),
        ("mhc", ["--text", "absent.txt"], r"text file absent\.txt cannot be read"),
    ],
)
def test_errors_of_the_command(checkpoints, tmp_path, capsys, name, arguments, message):
    line = ["--checkpoint", str(checkpoints[0] / name), "--out", str(tmp_path / "out")]
    line += ["--tasks", "gsm8k", "bpb", "--limit", "2", "--max-tokens", "2"]
    assert main([*line, *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search("error: .*" + message, error), error
    assert not (tmp_path / "out").exists()


def test_the_command_measures_and_keeps_scores_apart(checkpoints, tmp_path, capsys):
    line = [
        *("--checkpoint", str(checkpoints[0] / "mhc"), "--out", str(tmp_path / "out")),
        *("--against", str(checkpoints[0] / "plain"), "--limit", "4", "--max-tokens", "4"),
        *("--tasks", "gsm8k", "bpb", "latency", "memory", "sinkhorn", "--device", "cpu"),
        *("--sinkhorn-iterations", "20", "1", "--latency.batches", "1", "2"),
        *("--latency.repeats", "2", "--latency.prompt-tokens", "8", "--latency.new-tokens", "3"),
    ]
    assert main(line) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["tasks"]) == ["gsm8k", "bpb"]
    assert list(results["sinkhorn"]) == ["20", "1"]
    errors = [entry["row_error"] for entry in results["sinkhorn"].values()]
    assert errors[0] < errors[1]
    bits = {results["tasks"]["bpb"]["bits_per_byte"]}
    bits |= {entry["tasks"]["bpb"]["bits_per_byte"] for entry in results["sinkhorn"].values()}
    assert len(bits) == 3
    models = [row["model"] for row in results["measured"]["latency"]["rows"]]
    assert len(models) == 2 * (2 + 2)
    assert set(results["measured"]["memory"]) == {line[1], str(checkpoints[0] / "plain")}
    printed = capsys.readouterr().out
    assert "1 iterations" in printed
    assert "decode ms p50 / p95" in printed
    assert "peak MB" in printed
    samples = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    suffixes = ("", "@sinkhorn-20", "@sinkhorn-1")
    names = {f"{task}{suffix}" for task in ("gsm8k", "bpb") for suffix in suffixes}
    assert {json.loads(row)["task"] for row in samples} == names
