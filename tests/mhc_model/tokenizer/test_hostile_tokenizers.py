"""Tokenizer files that fail, hang or ask for too much: errors in words, when they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converted_files import TEXTS, converted_files

from mhc_model import CheckpointError, DataError
from mhc_model.tokenizer import FastTokenizer, Tokenizer, load_tokenizer

EMPTY = ["", "|", "a*", "(?=a)", r"\b", "^", "$", "(?:)"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Tokenizer.train(["abc"], vocab_size=257).save(tmp_path / "ours")
    for name, content in converted_files().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("pattern", [*EMPTY, "x", ".", r"\p{L}+", "(", "a{1,1000000000}"])
def test_a_pattern_that_does_not_cut_texts(saved: Path, pattern: str) -> None:
    edit(
        saved / "ours" / "tokenizer_config.json",
        lambda config: config["mhc_gates"].update({"pattern": pattern}),
    )
    with pytest.raises(CheckpointError, match=r"tokenizer in .*(pattern|library failed)"):
        load_tokenizer(saved / "ours")


def test_a_pattern_that_fails_later() -> None:
    """Nothing tells before: it matches an empty text only before one letter."""
    ranks = {bytes([i]): i for i in range(256)}
    from mhc_model.tokenizer import TiktokenTokenizer

    tokenizer = TiktokenTokenizer(ranks, r"(?=Z)|[\s\S]", "<|x|>")
    with pytest.raises(DataError, match=r"library failed.*\(\?=Z\)"):
        tokenizer.encode("Zab")
    with pytest.raises(DataError, match="library failed"):
        tokenizer.encode_batch(["a", "Zab", "b"])


def split(pattern: str) -> Callable[[dict[str, Any]], object]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda content: content["pre_tokenizer"]["pretokenizers"].__setitem__(0, cut)


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(?:a|aa)+$b", "(", "a{1,1000000000}"])
def test_a_pattern_of_tokenizer_json_that_fails(saved: Path, pattern: str) -> None:
    edit(saved / "tokenizer.json", split(pattern))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(saved)


def test_a_pattern_of_tokenizer_json_that_fails_later(saved: Path) -> None:
    edit(saved / "tokenizer.json", split("(Q+)+$"))
    tokenizer = load_tokenizer(saved)
    with pytest.raises(DataError, match="library failed"):
        tokenizer.encode("Q" * 60 + "b")


def test_a_model_without_its_type(saved: Path) -> None:
    """GPT-2's own file names none."""
    expected = load_tokenizer(saved)
    edit(saved / "tokenizer.json", lambda content: content["model"].pop("type"))
    tokenizer = load_tokenizer(saved)
    for text in TEXTS:
        assert tokenizer.encode(text) == expected.encode(text)


def test_merges_are_never_left_out_by_chance(saved: Path) -> None:
    expected = load_tokenizer(saved)
    edit(saved / "tokenizer.json", lambda content: content["model"].update({"dropout": 0.5}))
    tokenizer = load_tokenizer(saved)
    assert all(tokenizer.encode(TEXTS[0]) == expected.encode(TEXTS[0]) for _ in range(20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("model"), "cannot be read"),
        (lambda c: c["model"].update({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}), "."),
        (lambda c: c["model"].update({"vocab": {"a": 2**32 - 1}, "merges": []}), "id 4294967295"),
        (lambda c: c["model"].update({"vocab": {"a": -1}}), "cannot be read"),
        (lambda c: c["model"].update({"merges": ["a nothing"]}), "cannot be read"),
        (lambda c: c.update({"decoder": None}), "supported: byte-level BPE"),
        (lambda c: c.update({"decoder": [1]}), "cannot be read"),
        (lambda c: c.update({"pre_tokenizer": {"type": "Nothing"}}), "cannot be read"),
        (lambda c: c.update({"added_tokens": [{"id": 2**31}]}), "cannot be read"),
    ],
)
def test_a_tokenizer_json_that_is_odd(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(saved / "tokenizer.json", change)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json.*{message}"):
        load_tokenizer(saved)


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff", b"", b"{}"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_json_that_is_no_tokenizer(saved: Path, name: str, content: bytes) -> None:
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError):  # {} as a configuration names no end
        load_tokenizer(saved)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pipe_in_place_of_a_file(saved: Path, name: str) -> None:
    (saved / name).unlink(missing_ok=True)
    os.mkfifo(saved / name)
    with pytest.raises(CheckpointError, match="no regular file"):
        FastTokenizer.load(saved)
    with pytest.raises(CheckpointError, match="no regular file"):
        load_tokenizer(saved)


def test_a_pipe_in_place_of_the_ranks(saved: Path) -> None:
    path = saved / "ours" / "tokenizer.tiktoken"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="no regular file"):
        load_tokenizer(saved / "ours")
    with pytest.raises(DataError, match="no regular file"):
        Tokenizer.from_tiktoken_file(path)
