"""Every kind of source, in parts; and what is wrong with some."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from corpora import TEXTS, content, texts_of, write_parquet, write_rows

from evals.problems import Problem
from evals.tasks import document
from mhc_model.errors import DataError
from train.prepare import open_source, prepare


def test_rows_with_text_and_with_questions_plain_and_gzip(make, tmp_path):
    questions = [{"question": f"{i} + 1?", "answer": f"{i + 1}\n#### {i + 1}"} for i in range(40)]
    write_rows(tmp_path / "a.jsonl")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in questions)
    config = make(tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz")
    manifest = prepare(config)
    assert len(manifest.train) > 5
    expected = [document(Problem("", row["question"], row["answer"])) for row in questions]
    assert sorted(texts_of(config.out)) == sorted([*TEXTS, *expected])
    assert {Path(name).parts[0] for name in content(config.out)} == {
        *("manifest.json", "plan.json", "token_bytes.npy", "tokenizer"),
        *(entry.file for entry in (*manifest.train, *manifest.validation)),
    }


def test_another_key_for_the_text(make, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    config = make(path, text_column="body")
    prepare(config)
    assert sorted(texts_of(config.out)) == sorted(TEXTS)


@pytest.mark.parametrize("kind", ["txt", "txt.gz"])
def test_text_of_several_files(make, tmp_path, kind):
    book = "".join(f"Line {i} of the größte book.\n" + "\n" * (i % 5 == 0) for i in range(4000))
    opener = gzip.open if kind.endswith("gz") else open
    paths = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path, text in zip(paths, (book, book.replace("Line", "Row")), strict=True):
        with opener(path, "wt", encoding="utf-8") as file:
            file.write(text)
    config = make(*paths, part_bytes=50_000)
    manifest = prepare(config)
    assert len(manifest.train) == 2 if kind == "txt.gz" else len(manifest.train) >= 4
    assert sum(map(len, texts_of(config.out))) == 2 * len(book) - 4000
    assert "".join(sorted(texts_of(config.out))).count("größte") == 8000


def test_parquet_by_row_groups_and_rows_without_text(make, tmp_path):
    texts = [*TEXTS[:100], None, "  ", *TEXTS[100:]]
    path = write_parquet(tmp_path / "a.parquet", {"text": texts, "id": list(range(len(texts)))})
    config = make(path, part_bytes=1024)
    manifest = prepare(config)
    assert len(manifest.train) > 5
    assert manifest.skipped == 2
    assert sorted(texts_of(config.out)) == sorted(TEXTS)


def test_a_directory_as_a_data_set_of_the_hub(make, tmp_path):
    for number, texts in enumerate((TEXTS[:120], TEXTS[120:])):
        name = f"train-{number:05d}-of-00002.parquet"
        write_parquet(tmp_path / "set" / name, {"text": texts, "score": [0.5] * len(texts)})
    config = make(tmp_path / "set")
    manifest = prepare(config)
    assert len(open_source(config).parts()) == 13  # row groups of both files
    assert len(manifest.train) == 13
    assert sorted(texts_of(config.out)) == sorted(TEXTS)
    for changes in ({"split": "nothing"}, {"subset": "nothing"}):
        other = make(tmp_path / "set", out=str(tmp_path / "other"), **changes)
        with pytest.raises(DataError, match=r"set' could not be opened .*nothing"):
            prepare(other)


def test_small_files_share_a_part(make, tmp_path):
    paths = []
    for number in range(40):
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_text(f"A short text, number {number}.\n" * 4)
    config = make(*paths, part_bytes=100_000)
    manifest = prepare(config)
    assert (len(manifest.train), len(manifest.validation)) == (1, 1)
    assert len(texts_of(config.out)) == 40


def test_only_the_first_parts(make, tmp_path):
    config = make(write_rows(tmp_path / "a.jsonl"), max_parts=3)
    assert [e.file for e in prepare(config).train] == [f"train-{i:05d}.bin" for i in range(3)]
    found = texts_of(config.out)
    assert sorted(found) == sorted(TEXTS[: len(found)])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', r"a\.jsonl line 2 has neither 'text' nor"),
        ("a.jsonl", b'{"text": "a"}\n' * 900 + b"{\n", r"a\.jsonl line 901 is not JSON"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.txt", b"a text\n\xff\n", r"a\.txt cannot be read"),
        ("a.txt.gz", gzip.compress(b"a text\n" * 99, mtime=0)[:-9], r"a\.txt\.gz cannot be read"),
        ("a.parquet", b"PAR1 no", r"a\.parquet cannot be read as parquet"),
    ],
)
def test_a_malformed_source_is_named(make, tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        prepare(make(tmp_path / name))


def test_columns_that_do_not_fit_are_named(make, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"body": TEXTS})
    with pytest.raises(DataError, match=r"columns body: neither 'text' nor .* --text-column"):
        prepare(make(path))
    path = write_parquet(tmp_path / "b.parquet", {"text": list(range(50))})
    with pytest.raises(DataError, match=r"column 'text' of .*b\.parquet holds int"):
        prepare(make(path, out=str(tmp_path / "b")))
