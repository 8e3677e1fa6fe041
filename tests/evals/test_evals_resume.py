"""Runs that stop and go on: nothing is scored twice, and nothing else is mixed in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from evals.__main__ import main
from evals.tasks import gsm8k


def results_of(out):
    results = json.loads((out / "results.json").read_text())
    return {name: value for name, value in results.items() if name != "measured"}


def lines_of(out):
    return (out / "samples.jsonl").read_text().splitlines()


def test_the_same_command_gives_the_same_results(line, tmp_path):
    out = tmp_path / "out"
    assert main(line) == 0
    first, samples = results_of(out), lines_of(out)
    (tmp_path / "out").rename(tmp_path / "before")
    assert main(line) == 0
    assert results_of(out) == first
    assert lines_of(out) == samples


def test_what_is_there_is_not_scored_again(line, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert main(line) == 0
    whole, results = lines_of(out), results_of(out)
    (out / "results.json").unlink()
    # Cut in the middle of a line, as a process that is killed leaves it.
    kept = "\n".join(whole[:7]) + "\n"
    (out / "samples.jsonl").write_text(kept + whole[7][: len(whole[7]) // 2])
    scored = []
    score = gsm8k.score
    monkeypatch.setattr(
        gsm8k,
        "score",
        lambda text, problem: scored.append(problem.id) or score(text, problem),
    )
    assert main(line) == 0
    assert sorted(scored) == sorted(json.loads(row)["id"] for row in whole[7:12])
    assert lines_of(out) == whole
    assert results_of(out) == results
    timings = json.loads((out / "results.json").read_text())["measured"]
    assert timings["tasks"]["gsm8k"]["samples"] == 5
    scored.clear()
    assert main(line) == 0  # all is there
    assert scored == []
    assert json.loads((out / "results.json").read_text())["measured"] == timings


def test_a_killed_run_goes_on(line, tmp_path):
    """kill -9 while it scores; the command again gives what an undisturbed run gives."""
    out = tmp_path / "out"
    slow = [*line, "--max-batch", "1", "--limit", "60", "--max-tokens", "24", "--tasks", "gsm8k"]
    process = subprocess.Popen(
        [sys.executable, "-m", "evals", *slow],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not ((out / "samples.jsonl").exists() and len(lines_of(out)) >= 5):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (out / "samples.jsonl").read_text()
    before = before[: before.rfind("\n") + 1].splitlines()
    assert 5 <= len(before) < 60
    assert not (out / "results.json").exists()
    assert main(slow) == 0
    after = lines_of(out)
    assert len(after) == len({json.loads(row)["id"] for row in after}) == 60
    assert set(before) <= set(after)
    measured = json.loads((out / "results.json").read_text())["measured"]
    assert measured["tasks"]["gsm8k"]["samples"] == 60 - len(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gates", "0.5"], "settings.gates: 'learned' and '0.5'"),
        (["--seed", "1"], "settings.seed: 0 and 1"),
        (["--max-tokens", "7"], "max_tokens: 6 and 7"),
        (["--words", "direct"], "settings.words: None and 'direct'"),
        (["--checkpoint", "plain"], "checkpoint: '[0-9a-f]+' and '[0-9a-f]+'"),
    ],
)
def test_other_settings_are_refused(checkpoints, line, tmp_path, capsys, arguments, message):
    assert main(line) == 0
    if arguments[0] == "--checkpoint":
        arguments = ["--checkpoint", str(checkpoints[0] / "plain")]
    before = lines_of(tmp_path / "out")
    assert main([*line, *arguments]) == 2
    error = capsys.readouterr().err
    assert "holds samples of another run" in error
    assert re.search(message, error), error
    assert lines_of(tmp_path / "out") == before


def test_settings_that_change_no_sample_are_free(line):
    assert main(line) == 0
    assert main([*line, "--max-batch", "3"]) == 0
