"""All parts or the rest of them: the tokenizer, restarts, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from corpora import content, write_rows

from mhc_model.errors import ConfigError, DataError
from mhc_model.tokenizer import Tokenizer
from train.data import ShardedTokens, is_held_out
from train.prepare import Job, Part, one_after_another, open_source, prepare


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
