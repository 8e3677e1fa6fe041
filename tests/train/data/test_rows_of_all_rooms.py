"""One reader of rows: what a file of JSON lines may have, and what is wrong with it, is the same
for evaluation, fine-tuning, pretraining and preparation."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from evals.problems import load_problems, read_problems
from evals.tasks import load_choices
from mhc_model.errors import DataError
from mhc_model.files import LONGEST_ROW
from mhc_model.settings import validate_settings
from train.config import DataConfig
from train.data.documents import read_documents
from train.data.questions import split_questions
from train.prepare.config import PrepareConfig
from train.prepare.sources import open_source

ROW = b'{"question": "2 + 2?", "answer": "#### 4"}'
OTHER = b'{"question": "3 + 3?", "answer": "#### 6"}'
BOM = b"\xef\xbb\xbf"


def evaluated(path: Path) -> list[str]:
    return [problem.question for problem in load_problems(str(path))]


def tuned(path: Path) -> list[str]:
    held_out = path.parent / "held_out.jsonl"
    held_out.write_bytes(ROW)
    values = {"files": [str(path)], "validation_files": [str(held_out)]}
    training, _, _ = split_questions(validate_settings(DataConfig, values, "data"), {})
    return [asked.problem.question for asked in training]


def pretrained(path: Path) -> list[str]:
    return [
        found.text.removeprefix("Question: ").partition("\n")[0]
        for found in read_documents(str(path))
    ]


def prepared(path: Path) -> list[str]:
    config = validate_settings(
        PrepareConfig,
        {"source": [str(path)], "out": str(path.parent), "part_bytes": 1024},
        "prepare",
    )
    source = open_source(config)
    return [
        found.text.removeprefix("Question: ").partition("\n")[0]
        for part in source.parts()
        for found in source.documents(part)
    ]


ROOMS = [evaluated, tuned, pretrained, prepared]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        ROW + b"\n" + OTHER + b"\n",
        ROW + b"\n" + OTHER,
        BOM + ROW + b"\n" + OTHER + b"\n",
        BOM + b"\r\n" + ROW + b"\r\n\r\n" + OTHER + b"\r\n",
        ROW + b"\r\n" + OTHER + b"\n",
        b"\n\n" + ROW + b"\n \t\r\n" + OTHER + b"\n\n",
        ROW.replace(b": ", b":\r ") + b"\n" + OTHER + b"\n",
    ],
)
def test_the_same_rows_come_out(room, compressed, content, tmp_path):
    path = tmp_path / ("x.jsonl.gz" if compressed else "x.jsonl")
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert room(path) == ["2 + 2?", "3 + 3?"]


FAULTS = [
    (b'{"question": %s}' % (b"9" * 5000), "has an integer of 5,000 digits"),
    (b'{"question": -%s}' % (b"9" * 400), "has an integer of 401 digits"),
    (b'{"question": 1e999}', "has the number 1e999, which is out of range"),
    (b"[" * 100_000 + b"]" * 100_000, "has more than 100 brackets one in another"),
    (b'{"a": ' * 100_000, "has more than 100 brackets one in another"),
    (ROW[:-1] + b', "answer": "#### 5"}', "has the key 'answer' twice"),
    (b'{"question": {"a": 1, "a": 2}}', "has the key 'a' twice"),
    (b'{"question": "a\xff"}', "is not UTF-8"),
    (b"\xff\xfe{\x00", "has a NUL byte"),
    (b'{"question": "a\0b"}', "has a NUL byte"),
    (BOM + ROW, "is not JSON"),
    (b"{", "is not JSON"),
    (ROW + OTHER, "is not JSON .Extra data."),
    (b'{"question": "%s"}' % (b"x" * LONGEST_ROW), f"is longer than {LONGEST_ROW:,} bytes"),
]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
@pytest.mark.parametrize(("line", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_the_same_fault_is_named_with_file_and_line(room, line, fault, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(ROW + b"\r\n\n" + line + b"\n" + OTHER + b"\n")
    with pytest.raises(DataError, match=rf"x\.jsonl line 3 .*{fault}"):
        room(path)


def test_evaluation_leaves_such_rows_out_and_goes_on_behind_them(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join([ROW, *(line for line, _ in FAULTS), OTHER]))
    found = read_problems(str(path))
    assert [problem.question for problem in found.problems] == ["2 + 2?", "3 + 3?"]
    assert len(found.malformed) == len(FAULTS)


def test_choices_are_read_in_the_same_way(tmp_path):
    row = {"activity_label": "A", "ctx": "He", "endings": ["a", "b", "c", "d"], "label": "1"}
    content = json.dumps(row).encode()
    path = tmp_path / "hellaswag.jsonl"
    path.write_bytes(BOM + content + b"\r\n" + b"[" * 100_000 + b"\n" + content)
    found = load_choices("hellaswag", str(path))
    assert len(found.problems) == 2
    assert "line 2 has more than 100 brackets" in found.malformed[0]


def test_brackets_within_texts_are_no_nesting(tmp_path):
    path = tmp_path / "x.jsonl"
    text = '[{"' * 1000
    path.write_text(json.dumps({"question": text, "answer": "#### 4"}) + "\n")
    for room in (evaluated, tuned):
        assert room(path) == [text]


def test_a_text_has_no_byte_order_mark(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(BOM + b"once\r\nupon\r\n")
    assert [found.text for found in read_documents(str(path))] == ["once\nupon\n"]
