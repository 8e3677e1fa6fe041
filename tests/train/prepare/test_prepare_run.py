"""`python -m train.prepare`: every kind of source, restarts, and what is refused."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.problems.problem import Problem
from evals.tasks.gsm8k_pure import document
from mhc_model.errors import ConfigError, DataError
from mhc_model.settings import dump_settings, validate_settings
from mhc_model.tokenizer import FastTokenizer, Tokenizer
from train.data import ShardedTokens, is_held_out
from train.prepare import Job, Part, PrepareConfig, one_after_another, open_source, prepare
from train.prepare.__main__ import main

ROOT = Path(__file__).parents[3]
TEXTS = [f"Text {i}: größer, Ж, 漢字 \N{SLOTH}, {i * i} words. " * (i % 9 + 1) for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(TEXTS, 320).save(directory)
    return str(directory)


@pytest.fixture
def make(tmp_path: Path, tokenizer: str) -> Any:
    """`make(*sources, **fields)`: a configuration with parts of a few kilobytes."""

    def build(*sources: Path, **fields: object) -> PrepareConfig:
        values = {
            "source": [str(source) for source in sources],
            "out": str(tmp_path / "out"),
            "tokenizer": tokenizer,
            "validation_share": 0.2,
            "part_bytes": 8000,
        }
        return validate_settings(PrepareConfig, values | fields, "test")

    return build


def write_rows(path: Path, texts: list[str] = TEXTS) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pa.parquet.write_table(pa.table(dict(columns)), path, row_group_size=25)
    return path


def texts_of(out: str, split: str = "both") -> list[str]:
    """The documents in the shards, in order; each must begin with the separator."""
    shards = ShardedTokens(out)
    tokenizer = shards.tokenizer()
    found = []
    for name in ("train", "validation") if split == "both" else (split,):
        for entry in getattr(shards.manifest, name):
            tokens = np.fromfile(Path(out, entry.file), shards.dtype)
            starts = np.flatnonzero(tokens == tokenizer.bos_id)
            assert starts[0] == 0
            ends = [*starts[1:], len(tokens)]
            parts = [tokens[s:e].tolist() for s, e in zip(starts, ends, strict=True)]
            found += [tokenizer.decode(part) for part in parts]
            assert (len(parts), len(tokens)) == (entry.documents, entry.tokens)
            assert entry.bytes == sum(len(text.encode()) for text in found[-len(parts) :])
            assert hashlib.sha256(tokens.tobytes()).hexdigest() == entry.sha256
    return found


def content(out: str | Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in Path(out).rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


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


def test_a_tokenizer_is_trained_on_training_documents(make, tmp_path):
    texts = [
        f"{word} {word} {word}" for word in ("alpha", "beta", "gamma", "delta") for _ in range(9)
    ]
    held_out = next(text for text in texts if is_held_out(text, 0.5))
    path = write_rows(tmp_path / "a.jsonl", texts)
    config = make(path, tokenizer="train", vocab_size=300, validation_share=0.5)
    manifest = prepare(config)
    tokenizer = ShardedTokens(config.out).tokenizer()
    assert 257 < manifest.vocab_size == tokenizer.vocab_size <= 300
    merges = range(256, manifest.vocab_size - 1)
    pieces = {tokenizer.token_bytes(token).decode().strip() for token in merges}
    assert held_out.split()[0] not in pieces
    assert any(text.split()[0] in pieces for text in texts)


def test_a_tokenizer_is_trained_on_the_beginning_of_all_parts(make, tmp_path):
    first, second = ["first part " * 200] * 60, ["other words " * 200] * 60
    paths = [write_rows(tmp_path / f"{i}.jsonl", t) for i, t in enumerate((first, second))]
    fields = {"tokenizer": "train", "vocab_size": 290, "validation_share": 0.01, "seed": 1}
    config = make(*paths, part_bytes=200_000, tokenizer_bytes=10_000, **fields)
    assert not is_held_out(first[0], 0.01, 1)
    with pytest.raises(DataError, match="0 held-out documents"):
        prepare(config)
    directory = Path(config.out, "tokenizer")
    found = Tokenizer.from_directory(directory)
    pieces = {found.token_bytes(i) for i in range(found.vocab_size)}
    assert {b" part", b" words"} <= pieces


@given(text=st.text())
def test_bytes_of_tokens_add_up_to_the_text(text):
    # 256 single bytes and a few merges: every character beyond ASCII is cut within.
    for found in (_BYTES, _MERGED):
        ids = found.encode(text, bos=True)
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert sum(found.token_byte_lengths()[ids].tolist()) == len(whole.encode())


_BYTES = Tokenizer.train(["no pair twice"], 257)
_MERGED = Tokenizer.train(TEXTS, 400)


def test_the_byte_table_of_a_corpus(make, tmp_path):
    texts = ["größer Ж 漢字 \N{SLOTH}", "\ud83e\udda5 a pair", "\ud83e alone", "plain", "e\u0301"]
    texts = [f"{text} {i}" for text in texts for i in range(20)]
    config = make(write_rows(tmp_path / "a.jsonl", texts), tokenizer="train", vocab_size=262)
    manifest = prepare(config)
    table = np.load(Path(config.out, "token_bytes.npy"))
    shards = ShardedTokens(config.out)
    tokenizer = shards.tokenizer()
    assert (table.dtype, table.shape) == (np.uint16, (manifest.vocab_size,))
    assert table[tokenizer.bos_id] == 0
    assert (table[: tokenizer.bos_id] > 0).all()
    for split in ("train", "validation"):
        for entry in getattr(manifest, split):
            tokens = np.fromfile(Path(config.out, entry.file), shards.dtype)
            assert table[tokens].sum() == entry.bytes
    # UTF-8 has no lone surrogates: they are U+FFFD, three bytes.
    whole = [t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in texts]
    assert sorted(texts_of(config.out)) == sorted(whole)


@pytest.mark.parametrize(("bos", "eos"), [(None, 256), (257, 256), (256, 256)])
def test_vocabularies_of_converted_models_mark_the_end(make, tmp_path, bos, eos):
    files = Tokenizer.train(TEXTS, 257).files
    fast = FastTokenizer({"tokenizer.json": files["tokenizer.json"]}, 300, bos, [eos])
    fast.save(tmp_path / "fast")
    config = make(write_rows(tmp_path / "a.jsonl"), tokenizer=str(tmp_path / "fast"))
    manifest = prepare(config)
    shards = ShardedTokens(config.out)
    tokens = np.fromfile(Path(config.out, manifest.train[0].file), np.uint16)
    assert tokens[0] == (bos or TEXTS[0].encode()[0])
    assert tokens[-1] == eos
    held_out = shards.validation_texts(shards.tokenizer(), 1000)
    assert 30 < len(held_out) < 90
    assert set(held_out) < set(TEXTS)
    few = shards.validation_texts(shards.tokenizer(), 4)
    assert list(few) == [held_out[i * len(held_out) // 4] for i in range(4)]


def test_large_vocabularies_take_four_bytes(make, tmp_path):
    tokens = [bytes([i]) for i in range(256)]
    tokens += [bytes([i, j]) for i in range(256) for j in range(256)]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    (tmp_path / "pairs.tiktoken").write_text("".join(lines))
    path = write_rows(tmp_path / "a.jsonl", TEXTS[:50])
    config = make(path, tokenizer=str(tmp_path / "pairs.tiktoken"))
    manifest = prepare(config)
    assert (manifest.dtype, manifest.vocab_size) == ("uint32", 256 + 2**16 + 1)
    assert sorted(texts_of(config.out)) == sorted(TEXTS[:50])


def test_no_document_is_on_both_sides(make, tmp_path):
    twice = [*TEXTS, *TEXTS[::-1]]
    paths = [write_rows(tmp_path / "a.jsonl", twice), write_rows(tmp_path / "b.jsonl", TEXTS)]
    config = make(*paths)
    prepare(config)
    training, held_out = (texts_of(config.out, split) for split in ("train", "validation"))
    assert len(training) + len(held_out) == 3 * len(TEXTS)
    assert not set(training) & set(held_out)
    assert 30 < len(set(held_out)) < 90
    other = make(*paths, out=str(tmp_path / "other"), seed=1)
    prepare(other)
    assert set(texts_of(other.out, "validation")) != set(held_out)


def test_an_interrupted_preparation_ends_with_the_same_bytes(make, tmp_path):
    path = write_rows(tmp_path / "a.jsonl")
    whole = make(path, out=str(tmp_path / "whole"))
    prepare(whole)
    done: list[int] = []

    def interrupted(job: Job, parts: Mapping[int, Part]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in one_after_another(job, parts):
            done.append(number)
            if len(done) == 4:
                # As a kill in the middle of a part leaves it.
                Path(job.location, "train-00099.bin.tmp-123456").write_bytes(b"half")
                raise KeyboardInterrupt
            yield number, record

    config = make(path)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupted)
    with pytest.raises(DataError, match="not prepared to the end"):
        ShardedTokens(config.out)
    # A shard that the interruption damaged is made again.
    Path(config.out, "train-00002.bin").write_bytes(b"cut")
    again: list[int] = []

    def rest(job: Job, parts: Mapping[int, Part]) -> Iterator[tuple[int, dict[str, Any]]]:
        again.extend(parts)
        yield from one_after_another(job, parts)

    prepare(config, rest)
    assert again == [2, *range(4, len(open_source(config).parts()))]
    assert content(config.out) == content(whole.out)

    def nothing(job: Job, parts: Mapping[int, Part]) -> Iterator[tuple[int, dict[str, Any]]]:
        raise AssertionError("a complete corpus is not prepared again")

    prepare(config, nothing)


def test_a_changed_source_or_setting_is_refused(make, tmp_path):
    path = write_rows(tmp_path / "a.jsonl")
    prepare(make(path))
    with pytest.raises(ConfigError, match=r"other settings: validation_share: 0\.2 -> 0\.3"):
        prepare(make(path, validation_share=0.3))
    with path.open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(ConfigError, match="the source has changed"):
        prepare(make(path))


def test_two_at_once_in_one_directory_are_refused(make, tmp_path):
    config = make(write_rows(tmp_path / "a.jsonl"))

    def second(job: Job, parts: Mapping[int, Part]) -> Iterator[tuple[int, dict[str, Any]]]:
        with pytest.raises(ConfigError, match=r"another train\.prepare is at work in"):
            prepare(config)
        yield from one_after_another(job, parts)

    prepare(config, second)


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
        ("a.txt.gz", gzip.compress(b"a text\n" * 99)[:-9], r"a\.txt\.gz cannot be read"),
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


@pytest.mark.parametrize("missing", ["nowhere/missing.tsv", "here/missing.log", "a/b/c"])
def test_a_file_that_is_not_there_is_no_data_set(tmp_path, monkeypatch, capsys, missing):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(SystemExit):
        main(["--source", missing, "--out", "out"])
    assert f"{missing!r} is no file or directory here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert PrepareConfig(source=("someone/texts-v1.5",), out="out").is_data_set


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "no/such.jsonl"], "'no/such.jsonl' is no file or directory here"),
        (["--source", "nosuch"], "'nosuch' is no file or directory here"),
        (["--source", __file__, __file__], "twice"),
        (["--source", __file__, str(ROOT)], "give one data set, or files"),
        (["--source", __file__, "--subset", "x"], "subset is 'x', but the source is files"),
        (["--source", __file__, "--validation-share", "0.9"], "0.9"),
        (["--source", __file__, "--tokenizer", "no/such"], "'no/such' does not exist"),
        (["--source", __file__, "--out", "none://x"], "'none://x' cannot be used"),
        (["--source", __file__, "--out", "/dev/null/x"], "'/dev/null/x' cannot be written"),
    ],
)
def test_wrong_options_say_what_is_wrong(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):  # the command sets them
        monkeypatch.setenv(name, os.environ.get(name, "disabled"))
    out = [] if "--out" in arguments else ["--out", "out"]
    try:
        status = main([*arguments, *out])
    except SystemExit as stop:  # the command line's own errors
        status = stop.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_preparation_on_ray_goes_on(make, tmp_path):
    texts = [f"{text} {i}" for i in range(60) for text in TEXTS]
    path = write_rows(tmp_path / "a.jsonl", texts)
    whole = make(path, out=str(tmp_path / "whole"), part_bytes=100_000)
    prepare(whole)
    ray_directory = tempfile.mkdtemp(prefix="ray-")
    config = make(
        path,
        part_bytes=100_000,
        ray={"address": "local", "num_cpus": 2, "temp_dir": ray_directory},
    )
    dump_settings(config, tmp_path / "config.yaml")
    command = [sys.executable, "-m", "train.prepare", "--config", str(tmp_path / "config.yaml")]
    options: dict[str, Any] = {
        "cwd": ROOT,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "start_new_session": True,
        "stderr": subprocess.STDOUT,
    }
    records = Path(config.out, "parts")
    try:
        with (tmp_path / "first.txt").open("w") as output:
            process = subprocess.Popen(command, stdout=output, **options)
            deadline = time.monotonic() + 200
            while len(list(records.glob("*.json"))) < 3:
                assert time.monotonic() < deadline, "no part in time"
                assert process.poll() is None, (tmp_path / "first.txt").read_text()
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not Path(config.out, "manifest.json").exists()
        kept = {path: path.stat().st_mtime_ns for path in Path(config.out).glob("*-0000[01].bin")}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=240, **options)
        assert done.returncode == 0, done.stdout
        finished = re.search(r"parts of about 100,000 bytes, (\d+) of them finished", done.stdout)
        assert int(finished[1]) >= 3
        assert "tokens/s" in done.stdout
        assert kept == {path: path.stat().st_mtime_ns for path in kept}
        assert content(config.out) == content(whole.out)
    finally:
        shutil.rmtree(ray_directory, ignore_errors=True)
