"""Where problems come from, and what is said where they are not right."""

from __future__ import annotations

import gzip
import json

import pytest

from evals.problems import Problem, load_problems
from mhc_model.errors import DataError

ROWS = [{"question": f"q{i}", "answer": f"step\n#### {i}"} for i in range(4)]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["test.jsonl", "test.jsonl.gz"])
def test_file_and_directory_give_the_same_problems(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    problems = load_problems(str(path))
    assert problems == load_problems(str(tmp_path))
    assert problems[2] == Problem("test-00002", "q2", "step\n#### 2")
    assert load_problems(str(path), limit=2) == problems[:2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is list, not an object"),
        ('{"answer": "#### 1"}', "line 1 lacks 'question'"),
        ('{"question": "", "answer": "#### 1"}', "line 1 lacks 'question'"),
        ('{"question": "q", "answer": 7}', "line 1 lacks 'answer'"),
        ('{"question": "q", "answer": "7"}', "line 1 has an answer without a last line"),
        ('{"question": "q", "answer": "#### 7\\nmore"}', "line 1 has an answer without"),
        ("", "has no problems"),
    ],
)
def test_malformed_rows(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl.*{message}"):
        load_problems(str(path))


@pytest.mark.parametrize(
    "source", ["nowhere", "nowhere/test.jsonl", "builtin:", "builtin:5", "builtin:1,1", "builtin:x"]
)
def test_unknown_sources_say_what_is_accepted(source):
    with pytest.raises(DataError, match=r"accepted: .*\.jsonl\.gz.*builtin:LEVEL.*openai/gsm8k"):
        load_problems(source)


@pytest.mark.parametrize(("split", "limit"), [("validation", None), ("test", 0), ("test", -1)])
def test_split_and_limit_are_checked(split, limit):
    with pytest.raises(DataError, match=f"{split}|{limit}"):
        load_problems("builtin:1", split, limit)


def test_builtin_levels_alternate_and_a_limit_takes_the_first():
    problems = load_problems("builtin:1,3", "train", 5)
    assert [p.level for p in problems] == [1, 3, 1, 3, 1]
    assert [p.id for p in problems][:3] == [
        "builtin-1-train-000000",
        "builtin-3-train-000000",
        "builtin-1-train-000001",
    ]
    assert load_problems("builtin:1,3", "train", 1) == problems[:1]
    assert len(load_problems("builtin:2")) == 1000
