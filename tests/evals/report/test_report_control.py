"""The report's parts about choices of gates: styles under each behaviour, tokens, rewards."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from evals.__main__ import main
from evals.control.__main__ import main as control_main
from evals.report.__main__ import main as report_main
from evals.results import read_samples

SMALL = ["--limit", "6", "--max-tokens", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(checkpoints, tmp_path_factory):
    """Evaluations of a plain model with words and of a named one with gates; control."""
    root = tmp_path_factory.mktemp("runs")
    for name, checkpoint, more in (
        ("plain-direct", "plain", ["--words", "direct"]),
        ("learned", "named", []),
        ("worked", "named", ["--gates", "worked"]),
    ):
        line = ["--checkpoint", str(checkpoints[0] / checkpoint), "--out", str(root / name)]
        assert main([*line, *SMALL, "--data", "builtin:1,2", *more]) == 0
    line = ["--checkpoint", str(checkpoints[0] / "named"), "--out", str(root / "control")]
    assert control_main([*line, *SMALL, "--data", "builtin:1,2", "--between", "1"]) == 0
    return root


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    line = [str(runs), "--out", str(out), "--device", "cpu", "--token-cost", "0.125"]
    assert report_main(line) == 0
    return out


def rows_of(text: str, heading: str) -> list[list[str]]:
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_control_is_shown_with_its_picture(runs, report):
    text = (report / "report.md").read_text()
    found = json.loads((runs / "control" / "control.json").read_text())
    rows = rows_of(text, "Control")
    names = [point["name"] for point in found["points"]]
    shown = [row[0] for row in rows if row[0] in names]
    assert shown == 3 * names  # all problems, level 1, level 2
    assert "`direct` asks for direct answers, and 100.0 % [61.0, 100.0] are something" in text
    assert "**Control.** Of 6 answers each:" in text
    assert "](pictures/control.png)" in text
    assert (report / "pictures" / "control.png").exists()
    config = runs / "control" / "config.yaml"
    assert f"python -m evals.control --config {config}" in text
    page = (report / "report.html").read_text()
    assert "What the gates do to answers" in page


def test_every_choice_has_its_tokens_and_reward(runs, report):
    text = (report / "report.md").read_text()
    rows = {row[0]: row[1:] for row in rows_of(text, "Choices of gates")}
    labels = {
        "baseline (direct)": "plain-direct",
        "mHC, learned gates": "learned",
        "mHC, gates worked": "worked",
    }
    assert list(rows)[2:] == list(labels)
    for label, name in labels.items():
        samples = read_samples(runs / name, "gsm8k")
        tokens = np.array([sample["tokens"] for sample in samples])
        right = np.array([sample["strict"] for sample in samples])
        assert rows[label][1].startswith(f"{tokens.mean():.2f} [")
        assert rows[label][2].startswith(f"{(right - 0.125 * tokens).mean():.4f} [")
    assert "right - 0.125 * generated tokens" in text
    headlines = {row[0]: row[1:] for row in rows_of(text, "Results")}
    shown = headlines["GSM8K, 0-shot, tokens per answer"]
    assert re.fullmatch(r"\d\.\d", shown[0]), "the baseline's, with words"
    assert shown[2] == "not measured"
    assert "gsm8k reward" in text
