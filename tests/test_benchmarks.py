"""The benchmark runs, and its last line holds the figures. How fast anything is, no test says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import seeds

ROOT = Path(__file__).resolve().parents[1]
TINY = "--tokens 64 --width 64 --heads 4 --layers 1 --rounds 2 --what pair,step --only plain,ours"


def test_the_last_line_holds_the_figures_of_every_row():
    command = [sys.executable, "-m", "benchmarks.mhc", *TINY.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == {"options", "machine", "pair", "step"}
    for table in ("pair", "step"):
        rows = report[table]["rows"]
        assert [row["name"] for row in rows] == ["plain", "ours"]
        ratios = [row[key] for row in rows for key in ("ratio", "cpu_ratio")]
        ratios += [quartile for row in rows for quartile in row["ratio_quartiles"]]
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)
        assert all(len(row["times_ms"]) == 2 for row in rows)
    assert [row["name"] for row in report["pair"]["counts"]] == ["plain", "ours"]


def test_the_engine_beside_others():
    options = "--batch 2 --rounds 1 --layers 1 --width 32 --heads 2 --vocabulary 99 --prompt 8"
    command = [sys.executable, "-m", "benchmarks.engine", *options.split(), "--generate", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert [(table["batch"], table["lengths"]) for table in report["tables"]] == [
        (2, "equal"),
        (2, "mixed"),
    ]
    for table in report["tables"]:
        assert [row["name"] for row in table["rows"]] == [
            "engine",
            "transformers-batch",
            "mhc-uniform",
            "mhc-mixed",
            "engine-loop",
            "transformers-loop",
        ]
        for row in table["rows"]:
            assert row["tokens_per_s"] > 0
            ratios = [value for key, value in row.items() if key.startswith("over_")]
            assert len(ratios) == 5
            assert all(math.isfinite(value) and value > 0 for ratio in ratios for value in ratio)


def test_the_loader_beside_what_a_model_consumes():
    options = "--megabytes 2 --part-megabytes 0.5 --rounds 1"
    command = [sys.executable, "-m", "benchmarks.loader", *options.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["name"] for row in rows] == ["loader", "loader, 16 x 1024", "baseline", "mhc"]
    assert all(row["tokens_per_s"] > 0 and row["loader_over"] > 0 for row in rows)


def test_the_speed_of_training():
    options = "--what step --rounds 1 --layers 1 --width 64 --heads 1 --vocab 64 --tokens 16"
    command = [sys.executable, "-m", "benchmarks.train", *options.split(), "--peak-tflops", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    rows = report["step"]["rows"]
    assert [row["name"] for row in rows] == ["plain", "mhc"]
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(128 * 1e3 / row["median_ms"])
        assert 0 < row["mfu"] < 1


def test_intervals_of_seeds(tmp_path, capsys):
    bits = {"a-0": (3.0, 2.0), "a-1": (3.0, 2.2), "b-0": (3.0, 1.9), "b-1": (3.0, 2.0)}
    for name, values in bits.items():
        rows = [{"step": i + 1, "loss": 1.0, "val_bpb": v} for i, v in enumerate(values)]
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    seeds.main([*(str(tmp_path / name) for name in bits), "--out", str(tmp_path / "x.png")])
    _, first, second, _ = capsys.readouterr().out.splitlines()
    # Student's quantile with one degree of freedom is 12.706; the deviation of two is |d| / sqrt 2.
    assert "2.1000 ± 1.2706" in first
    assert "1.9500 ± 0.6353" in second
    assert "-0.1500 ± 0.6353" in second
    assert (tmp_path / "x.png").stat().st_size > 10_000
