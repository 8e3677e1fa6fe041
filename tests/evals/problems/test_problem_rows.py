"""Files of rows: which one is read, what is skipped, and what cannot be read."""

from __future__ import annotations

import gzip
import json

import pytest

from evals.problems import load_problems
from mhc_model.errors import DataError

ROWS = [{"question": f"q{i}", "answer": f"step\n#### {i}"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_directory_reads_the_split(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert [p.id for p in load_problems(str(tmp_path), "train")] == ["train-00000"]
    with pytest.raises(DataError, match=r"neither test\.jsonl nor test\.jsonl\.gz"):
        load_problems(str(tmp_path), "test")


def test_blank_lines_are_skipped_and_lines_still_counted_in_errors(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + '{"question": "only"}\n')
    assert len(load_problems(str(path), limit=1)) == 1
    with pytest.raises(DataError, match=r"x\.jsonl line 3 lacks 'answer'"):
        load_problems(str(path))


def test_damaged_files(tmp_path):
    whole = gzip.compress((LINES * 100).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        load_problems(str(tmp_path / "a.jsonl.gz"))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        load_problems(str(tmp_path / "b.jsonl"))
