"""Documents out of files: which rows and texts they are, in ranges, and what is wrong."""

import gzip
import json

import pytest

from train import data
from train.data.documents import LONGEST_TEXT_DOCUMENT


def read_documents(*arguments: object) -> list[str]:
    return [found.text for found in data.read_documents(*arguments)]


def test_text_and_rows_plain_and_gzip(tmp_path):
    rows = [{"text": "one"}, {"question": "1+1?", "answer": "2\n#### 2"}]
    content = "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / "rows.jsonl").write_text(content)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(content)
    expected = ["one", "Question: 1+1?\nAnswer: 2\n#### 2"]
    assert read_documents(str(tmp_path / "rows.jsonl")) == expected
    assert read_documents(str(tmp_path / "rows.jsonl.gz")) == expected
    text = "".join(f"Line {i} of a long book.\n" + "\n" * (i % 5 == 0) for i in range(2000))
    (tmp_path / "book.txt").write_text(text)
    with gzip.open(tmp_path / "book.txt.gz", "wt") as file:
        file.write(text)
    parts = read_documents(str(tmp_path / "book.txt"))
    assert "".join(parts) == text
    assert len(parts) > 3
    assert read_documents(str(tmp_path / "book.txt.gz")) == parts


@pytest.mark.parametrize("paragraphs", [True, False])
@pytest.mark.parametrize("rows", [True, False])
def test_ranges_of_a_file_share_nothing_and_miss_nothing(tmp_path, rows, paragraphs):
    lines = [f"Zeile {i}: größer, Ж, 漢字, \N{SLOTH}" for i in range(3000)]
    content = "".join(
        f"{line}\n" + "\n" * (paragraphs and i % 3 == 0) for i, line in enumerate(lines)
    )
    path = tmp_path / "book.txt"
    if rows:
        path = tmp_path / "rows.jsonl"
        content = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(content, encoding="utf-8")
    size = path.stat().st_size
    for part in (size, size // 2 - 1, 9999, 1024):
        texts = []
        for start in range(0, size, part):
            stop = start + part if start + part < size else None
            texts += read_documents(str(path), start, stop)
        if rows:
            assert texts == lines
        else:
            assert "".join(texts) == content
            assert all(text.startswith("Zeile") for text in texts)


def test_text_without_blank_lines_or_line_ends_is_cut_too(tmp_path):
    path = tmp_path / "endless.txt"
    for content in ("größer " * 100_000, "größer Ж\n" * 80_000):
        path.write_text(content, encoding="utf-8")
        texts = read_documents(str(path))
        assert "".join(texts) == content
        assert max(map(len, texts)) < 2 * LONGEST_TEXT_DOCUMENT
        size = path.stat().st_size
        parts = [
            read_documents(str(path), start, start + 50_001) for start in range(0, size, 50_001)
        ]
        assert "".join(text for part in parts for text in part) == content
