"""tokenizer.json, as the library tokenizers reads it, against the ranks that it was made of."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from tokenizer_cases import texts

from mhc_model.tokenizer import TiktokenTokenizer, Tokenizer
from mhc_model.tokenizer.tiktoken_tokenizer import DIGITS_PATTERN


def load_fast(tokenizer: Tokenizer, directory: Path) -> tokenizers.Tokenizer:
    tokenizer.save(directory)
    fast = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    fast.encode_special_tokens = True  # what split_special_tokens of tokenizer_config.json means
    return fast


@pytest.fixture(scope="module")
def fast(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return load_fast(trained, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def fast_gpt2(gpt2: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return load_fast(gpt2, tmp_path_factory.mktemp("gpt2"))


@given(text=texts)
@settings(deadline=None, max_examples=300)
def test_any_text_survives_and_tokenizer_json_agrees(
    trained: Tokenizer, fast: tokenizers.Tokenizer, text: str
) -> None:
    ids = trained.encode(text)
    assert trained.bos_id not in ids
    assert trained.decode(ids) == text
    assert b"".join(trained.token_bytes(i) for i in ids) == trained.decode_bytes(ids)
    assert fast.encode(text).ids == ids
    assert fast.decode(ids) == text


@given(text=texts)
@settings(deadline=None, max_examples=200)
def test_gpt2_text_survives_and_tokenizer_json_agrees(
    gpt2: Tokenizer, fast_gpt2: tokenizers.Tokenizer, text: str
) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert fast_gpt2.encode(text).ids == ids


def test_gpt2_merges_are_the_published_ones(
    fast_gpt2: tokenizers.Tokenizer, gpt2_file: Path
) -> None:
    published = gzip.decompress(gpt2_file.with_name("vocab.bpe.gz").read_bytes()).decode()
    merges = json.loads(fast_gpt2.to_str())["model"]["merges"]
    assert [" ".join(pair) for pair in merges] == published.split("\n")[1:-1]


def test_vocabularies_that_no_training_made(tmp_path: Path) -> None:
    """A token that no merge reaches, and one whose part has a higher rank than it."""
    extra = [b"qrs", b"abc", b"ab", b"cab"]
    ranks = {bytes([i]): i for i in range(256)} | {t: 256 + i for i, t in enumerate(extra)}
    tokenizer = TiktokenTokenizer(ranks, DIGITS_PATTERN, "<|bos|>")
    fast = load_fast(tokenizer, tmp_path)
    for text in ["qrs", "xqrs", "abc", "xabc", "abcab", "cabcabab", "abcabcqrs qrs"]:
        assert fast.encode(text).ids == tokenizer.encode(text)
    assert tokenizer.encode("qrs") == [256]
    assert tokenizer.encode("abc") == [257]


def test_config_is_what_transformers_reads(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["bos_token"] == config["eos_token"] == "<|bos|>"
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert fast.token_to_id("<|bos|>") == trained.bos_id
    assert fast.get_vocab_size() == trained.vocab_size
