"""What a task reads: text files, worked examples, and what is said where they do not fit."""

from __future__ import annotations

import gzip
import json

import pytest

from evals.__main__ import main
from evals.problems import load_problems
from evals.results import read_results, read_samples
from evals.tasks import document


def test_bpb_reads_text_files(evaluate, tmp_path):
    text = "\n".join(document(p) for p in load_problems("builtin:2", limit=3))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")]
    bpb = read_results(evaluate("mhc", "--tasks", "bpb", "--text", *files))["tasks"]["bpb"]
    assert (bpb["documents"], bpb["bytes"]) == (2, 2 * len(text.encode()))
    alone = read_results(evaluate("mhc", "--tasks", "bpb", "--text", files[0]))["tasks"]["bpb"]
    assert bpb["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-6)


def test_eight_shots_that_do_not_fit_are_reported(evaluate, capsys):
    out = evaluate("mhc", "--tasks", "gsm8k_8shot")
    task = read_results(out)["tasks"]["gsm8k_8shot"]
    assert (task["n_shot"], task["too_long"], task["strict"]["correct"]) == (8, 8, 0)
    assert read_samples(out, "gsm8k_8shot")[0]["prompt"].count("Question:") == 9
    assert "8 of 8 prompts do not fit the context and count as wrong" in capsys.readouterr().out


def test_shots_of_a_single_file_have_to_be_named(checkpoints, tmp_path, capsys):
    file = tmp_path / "p.jsonl"
    file.write_text('{"question": "q", "answer": "#### 1"}\n')
    line = ["--checkpoint", str(checkpoints[0] / "mhc"), "--out", str(tmp_path / "out")]
    line += ["--tasks", "gsm8k_8shot", "--data", str(file)]
    assert main(line) == 2
    assert "--shots-data" in capsys.readouterr().err
    assert main([*line, "--shots-data", str(file)]) == 2
    assert "has 1 worked examples; 8 are needed" in capsys.readouterr().err


def test_multiple_choice_may_lie_elsewhere(evaluate, tmp_path):
    rows = tmp_path / "data" / "arc_easy"
    rows.mkdir(parents=True)
    row = {
        "id": "a",
        "question": "2 + 2?",
        "choices": {"text": ["4", "5"], "label": ["A", "B"]},
        "answerKey": "A",
    }
    (rows / "test.jsonl").write_text(json.dumps(row) + "\n")
    tasks = ("--tasks", "gsm8k", "arc_easy", "--choice-data", str(tmp_path / "data"))
    found = read_results(evaluate("mhc", *tasks))["tasks"]
    assert (found["gsm8k"]["n"], found["arc_easy"]["n"]) == (8, 1)


def test_multiple_choice_has_no_built_in_problems(checkpoints, tmp_path, capsys):
    line = ["--checkpoint", str(checkpoints[0] / "mhc"), "--out", str(tmp_path / "out")]
    assert main([*line, "--tasks", "arc_easy", "--data", "builtin:1"]) == 2
    assert "--choice-data" in capsys.readouterr().err
