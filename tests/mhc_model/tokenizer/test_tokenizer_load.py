"""Tokenizers in directories: which kind one holds, round trips, damage."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from converted_files import PADDED, TEMPLATE, TEXTS
from tokenizer_cases import CORPUS

from mhc_model import CheckpointError
from mhc_model.tokenizer import FastTokenizer, TiktokenTokenizer, Tokenizer


def test_directories_say_which_kind_they_hold(
    fast_tokenizer: FastTokenizer, trained: Tokenizer, tmp_path: Path
) -> None:
    fast_tokenizer.save(tmp_path / "fast")
    loaded = Tokenizer.from_directory(tmp_path / "fast")
    assert isinstance(loaded, FastTokenizer)
    assert loaded.files == fast_tokenizer.files
    assert (loaded.vocab_size, loaded.eos_ids) == (PADDED, fast_tokenizer.eos_ids)
    config = json.loads((tmp_path / "fast" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE
    trained.save(tmp_path / "tiktoken")
    assert isinstance(Tokenizer.from_directory(tmp_path / "tiktoken"), TiktokenTokenizer)
    copy = pickle.loads(pickle.dumps(fast_tokenizer))
    assert copy.encode(TEXTS[-1]) == fast_tokenizer.encode(TEXTS[-1])
    assert copy.vocab_size == PADDED


@pytest.mark.parametrize("content", ["", "[]", '{"mhc_gates": 3}', '{"mhc_gates": {}}'])
def test_a_damaged_directory_is_refused(
    fast_tokenizer: FastTokenizer, tmp_path: Path, content: str
) -> None:
    fast_tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.from_directory(tmp_path)
    fast_tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


def test_directory_round_trip(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    loaded = Tokenizer.from_directory(tmp_path)
    text = "".join(CORPUS)
    assert loaded.encode(text, bos=True) == trained.encode(text, bos=True)
    assert (loaded.vocab_size, loaded.pattern) == (trained.vocab_size, trained.pattern)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    loaded.save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before


@pytest.mark.parametrize("name", ["tokenizer.tiktoken", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "no base64 here", '{"mhc_gates": 3}'])
def test_damaged_directory_is_refused(
    trained: Tokenizer, tmp_path: Path, name: str, content: str | None
) -> None:
    trained.save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=name if content != "" else "token"):
        Tokenizer.from_directory(tmp_path)
