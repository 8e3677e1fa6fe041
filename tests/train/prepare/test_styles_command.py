"""`python -m train.prepare.styles`: problems as rows in answer styles."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from evals.problems import load_problems, style_of
from evals.tasks import score
from train.config import DataConfig
from train.data import prepare_answers
from train.prepare.styles import main

ROOT = Path(__file__).parents[3]
WORKED = "He has 3+4=<<3+4=7>>7 apples.\n#### 7"


def run(*arguments: object) -> int:
    return main(list(map(str, arguments)))


def read(path: Path) -> list[dict[str, str]]:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize("name", ["rows.jsonl", "new/rows.jsonl.gz"])
def test_every_problem_is_a_row_for_each_style(tmp_path, name, capsys):
    out = tmp_path / name
    styles = ["brief", "worked", "direct"]
    assert run("--source", "builtin:1,3", "--limit", 30, "--out", out, "--styles", *styles) == 0
    rows = read(out)
    assert len(rows) == 90
    problems = {p.question: p for p in load_problems("builtin:1,3", "train", 30)}
    for row in rows:
        assert list(row) == ["question", "answer", "behaviour"]
        assert style_of(row["answer"]) == row["behaviour"]
        assert score(" " + row["answer"], problems[row["question"]]).strict
    for place, row in enumerate(rows):
        others = [other for other in rows[max(0, place - 9) : place]]
        assert row["question"] not in {other["question"] for other in others}
    output = capsys.readouterr().out
    assert "direct: 30 rows\n" in output
    assert f"90 rows of 30 problems in {out}" in output
    before = out.read_bytes()
    run("--source", "builtin:1,3", "--limit", 30, "--out", out, "--styles", *styles)
    assert out.read_bytes() == before
    # What it wrote is what training reads.
    config = DataConfig(files=(str(out),), validation_share=0.2, vocab_size=300)
    assert {found.group for found in prepare_answers(config).groups} == set(styles)


def test_answers_without_the_form_of_a_style_are_left_out_and_counted(tmp_path, capsys):
    answers = [WORKED, "It is seven.\n#### 7", "3+4=<<3+4=7>>7\n#### 7", "Seven. #### 7"]
    source = tmp_path / "rows.jsonl"
    rows = [{"question": f"Q{i}", "answer": answer} for i, answer in enumerate(answers)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    run("--source", source, "--out", out, "--styles", "direct", "brief", "worked")
    found = {(row["question"], row["behaviour"]) for row in read(out)}
    assert found == {
        *(("Q0", "direct"), ("Q0", "brief"), ("Q0", "worked")),
        *(("Q1", "direct"), ("Q1", "worked")),
        *(("Q2", "direct"), ("Q2", "brief")),  # its worked form has no words
    }
    output = capsys.readouterr().out
    assert "direct: 3 rows, 1 without that form left out" in output
    assert "brief: 2 rows, 2 without that form left out" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nowhere.jsonl"], "no problems at 'nowhere.jsonl'"),
        (["--source", "builtin:9"], "'builtin:9' is no list of different levels"),
        (["--source", "bad.jsonl"], "bad.jsonl line 2 lacks 'answer'"),
        (["--source", "builtin:1", "--styles", "direct", "direct"], "'direct' is named twice"),
        (["--source", "builtin:1", "--styles", "loud"], "'direct', 'brief', 'worked'"),
        (["--source", "builtin:1", "--out", "rows.txt"], "must end in .jsonl or .jsonl.gz"),
        (["--source", "builtin:1", "--out", "/dev/null/rows.jsonl"], "cannot be written"),
    ],
)
def test_wrong_options_say_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    good = json.dumps({"question": "Q", "answer": WORKED})
    Path("bad.jsonl").write_text(good + '\n{"question": "Q"}\n')
    out = [] if "--out" in arguments else ["--out", "rows.jsonl"]
    try:
        status = run(*arguments, *out)
    except SystemExit as stop:  # the command line's own errors
        status = stop.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not Path("rows.jsonl").exists()


def test_help_loads_nothing_heavy():
    code = (
        "import sys, train.prepare.styles as s\n"
        "try: s.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'ray', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
