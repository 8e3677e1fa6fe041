"""Rows with behaviours and gates in every kind of source; their shards; and what a kill leaves."""

from __future__ import annotations

import gzip
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import TEXTS, content, write_parquet

from mhc_model.config import Behaviour, MHCConfig, ModelConfig
from mhc_model.errors import ConfigError, DataError
from mhc_model.settings import dump_settings, validate_settings
from train.config import DataConfig
from train.data import Batches, ShardedTokens, check_groups, prepare_corpus
from train.prepare import Job, Part, PrepareConfig, one_after_another, prepare

ROOT = Path(__file__).parents[3]
SAYS: list[dict[str, Any]] = [{}, {"behaviour": "direct"}, {"behaviour": "worked"}, {"gates": 0.5}]


def says_of(number: int) -> dict[str, Any]:
    return SAYS[number % 4]


def write_grouped(path: Path, texts: list[str] = TEXTS) -> Path:
    lines = "".join(json.dumps({"text": text} | says_of(i)) + "\n" for i, text in enumerate(texts))
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def texts_by_group(out: str) -> dict[Any, list[str]]:
    shards = ShardedTokens(out)
    tokenizer = shards.tokenizer()
    found: dict[Any, list[str]] = {}
    for entry in (*shards.manifest.train, *shards.manifest.validation):
        tokens = np.fromfile(Path(out, entry.file), shards.dtype)
        starts = [*np.flatnonzero(tokens == tokenizer.bos_id), len(tokens)]
        assert entry.documents == len(starts) - 1
        for start, stop in itertools.pairwise(starts):
            found.setdefault(entry.group, []).append(tokenizer.decode(tokens[start:stop].tolist()))
    return found


EXPECTED = {
    group: sorted(text for i, text in enumerate(TEXTS) if i % 4 == place)
    for place, group in enumerate((None, "direct", "worked", (0.5,)))
}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "directory"])
def test_rows_of_every_source_keep_what_they_say(make, tmp_path, kind):
    columns = {
        "text": TEXTS,
        "behaviour": [says_of(i).get("behaviour") for i in range(len(TEXTS))],
        "gates": [[0.5] if "gates" in says_of(i) else None for i in range(len(TEXTS))],
    }
    if kind == "directory":
        write_parquet(tmp_path / "set" / "train-00000-of-00001.parquet", columns)
        source = tmp_path / "set"
    elif kind == "parquet":
        source = write_parquet(tmp_path / "a.parquet", columns)
    else:
        source = write_grouped(tmp_path / f"a.{kind}")
    config = make(source)
    manifest = prepare(config)
    assert {group: sorted(texts) for group, texts in texts_by_group(config.out).items()} == EXPECTED
    where = {found.group: found.first for found in manifest.groups}
    assert list(where) == ["direct", "worked", (0.5,)]
    if kind == "directory":
        assert where["worked"].startswith(f"data set '{source}' row 3")
    else:
        assert where["worked"] == f"{source} {'row' if kind == 'parquet' else 'line'} 3"
    first = [entry for entry in manifest.train if entry.file.startswith("train-00000")]
    assert [(entry.file, entry.group) for entry in first] == [
        ("train-00000.bin", None),
        ("train-00000-1.bin", "direct"),
        ("train-00000-2.bin", "worked"),
        ("train-00000-3.bin", (0.5,)),
    ]


def test_training_reads_the_groups_of_shards(make, tmp_path):
    config = make(write_grouped(tmp_path / "a.jsonl"))
    manifest = prepare(config)
    corpus = prepare_corpus(DataConfig(shards=config.out, validation_documents=1000))
    assert [found.group for found in corpus.groups] == ["direct", "worked", (0.5,)]
    for number, found in enumerate(corpus.groups):
        entries = [entry for entry in manifest.train if entry.group == found.group]
        assert found.rows == sum(entry.documents for entry in entries)
        place = TEXTS.index(corpus.validation[corpus.validation_groups.index(number)])
        assert place % 4 == number + 1
    batches = Batches(corpus.tokens, 16, 8, seed=3)
    by_group = texts_by_group(config.out)
    for step in range(1, 12):
        inputs, _ = batches.sequences(step, 0, 8)
        for row, number in zip(inputs, batches.groups(step, 0, 8).tolist(), strict=True):
            group = None if number < 0 else corpus.groups[number].group
            text = corpus.tokenizer.decode(row.tolist())
            longest = max(text.split("Text "), key=len)
            assert any(longest in own for own in by_group[group])
    few = prepare_corpus(DataConfig(shards=config.out, validation_documents=9))
    assert len(few.validation) == len(few.validation_groups) == 9
    assert few.sha256 != corpus.sha256


def test_what_the_model_does_not_know_is_named_when_training_opens_the_shards(make, tmp_path):
    path = write_grouped(tmp_path / "a.jsonl")
    config = make(path)
    prepare(config)
    groups = prepare_corpus(DataConfig(shards=config.out)).groups
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 16}
    behaviours = {"direct": Behaviour(gates=(0, 0.3))}
    for model, message in (
        (ModelConfig(**sizes), r"line 2 .* has behaviour 'direct', but .* plain"),
        (ModelConfig(**sizes, mhc=MHCConfig(), behaviours=behaviours), "line 3 .*'worked'; .*dire"),
    ):
        with pytest.raises(DataError, match=rf"a\.jsonl {message}"):
            check_groups(groups, model)
    both = {**behaviours, "worked": Behaviour(gates=(0.5, 1))}
    check_groups(groups, ModelConfig(**sizes, mhc=MHCConfig(), behaviours=both))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"behaviour": "no name"}, r"a\.jsonl line 301 has behaviour 'no name'"),
        ({"gates": [0.5, 7.5]}, r"a\.jsonl line 301 has gates \[0.5, 7.5\]"),
    ],
)
def test_what_no_model_could_know_is_refused_at_once(make, tmp_path, row, message):
    path = write_grouped(tmp_path / "a.jsonl")
    with path.open("a") as file:
        file.write(json.dumps({"text": "more"} | row) + "\n")
    with pytest.raises(DataError, match=message):
        prepare(make(path))
    table = write_parquet(
        tmp_path / "b.parquet",
        {"text": ["a", "b"] * 40, **{key: [None] * 79 + [value] for key, value in row.items()}},
    )
    with pytest.raises(DataError, match=message.replace(r"a\.jsonl line 301", "b.parquet row 80")):
        prepare(make(table, out=str(tmp_path / "b")))


def test_too_many_gates_of_their_own_are_refused(make, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"text {i}", "gates": i / 100} for i in range(70)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"a\.jsonl line 65 has gates 0.64, the 65th .*round the"):
        prepare(make(path))
    assert not list(Path(tmp_path / "out").glob("*.bin*")), "what was begun is removed"


def test_words_instead_of_shards_of_their_own(make, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"question": f"{i} + 1?", "answer": f"{i + 1}", "behaviour": "direct"} for i in range(50)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make(path, style_words=True)
    manifest = prepare(config)
    assert manifest.groups == ()
    texts = texts_by_group(config.out)
    assert list(texts) == [None]
    assert all(" + 1? (direct)\nAnswer: " in text for text in texts[None])
    with pytest.raises(ConfigError, match="style_words: True -> None"):
        prepare(make(path))
    values = {"shards": config.out, "style_words": True}
    with pytest.raises(ConfigError, match=r"shards hold tokens.*--style-words"):
        validate_settings(DataConfig, values, "test")


def test_an_interrupted_preparation_ends_with_the_same_bytes(make, tmp_path):
    path = write_grouped(tmp_path / "a.jsonl")
    whole = make(path, out=str(tmp_path / "whole"))
    prepare(whole)
    done: list[int] = []

    def interrupted(job: Job, parts: Mapping[int, Part]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in one_after_another(job, parts):
            done.append(number)
            if len(done) == 4:
                raise KeyboardInterrupt
            yield number, record

    config = make(path)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupted)
    Path(config.out, "train-00001-2.bin").write_bytes(b"cut")
    Path(config.out, "validation-00002-1.bin").unlink()
    again: list[int] = []

    def rest(job: Job, parts: Mapping[int, Part]) -> Iterator[tuple[int, dict[str, Any]]]:
        again.extend(parts)
        yield from one_after_another(job, parts)

    prepare(config, rest)
    assert again[:3] == [1, 2, 4]
    assert content(config.out) == content(whole.out)


KILLED = """
import os, signal, sys
from mhc_model.settings import load_settings
from train.prepare import PrepareConfig, prepare
from train.prepare.part import ShardWriter
left = int(sys.argv[2])
add = ShardWriter.add
def counted(self, ids, size):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    self._flush()
    add(self, ids, size)
ShardWriter.add = counted
prepare(load_settings(PrepareConfig, sys.argv[1]))
"""


@pytest.mark.parametrize("documents", [7, 150])
def test_a_killed_preparation_ends_with_the_same_bytes(make, tmp_path, documents):
    path = write_grouped(tmp_path / "a.jsonl")
    whole = make(path, out=str(tmp_path / "whole"))
    prepare(whole)
    config = make(path)
    dump_settings(config, tmp_path / "config.yaml")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml"), str(documents)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert list(Path(config.out).glob("*.tmp-*")), "it was in the middle of a part"
    assert bool(list(Path(config.out, "parts").glob("*.json"))) is (documents > 100)
    prepare(config)
    assert content(config.out) == content(whole.out)


def test_an_unfinished_directory_of_before_there_were_groups_goes_on(make, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    whole = make(path, out=str(tmp_path / "whole"))
    prepare(whole)

    def interrupted(job: Job, parts: Mapping[int, Part]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in one_after_another(job, parts):
            if number == 3:
                raise KeyboardInterrupt
            yield number, record

    config = make(path)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupted)
    for record in Path(config.out, "parts").glob("*.json"):
        values = json.loads(record.read_text())
        del values["groups"]
        values |= {split: values[split][0] for split in ("train", "validation")}
        record.write_text(json.dumps(values))
    prepare(config)
    assert content(config.out) == content(whole.out)
    manifest = json.loads(Path(config.out, "manifest.json").read_text())
    assert "groups" not in manifest
    assert "style_words" not in manifest["settings"]
    assert "group" not in manifest["train"][0]


def test_a_manifest_that_contradicts_itself_is_malformed(make, tmp_path):
    config: PrepareConfig = make(write_grouped(tmp_path / "a.jsonl"))
    prepare(config)
    path = Path(config.out, "manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["groups"][0]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"malformed: .*has the group 'direct', which groups lacks"):
        ShardedTokens(config.out)
