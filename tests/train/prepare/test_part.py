"""What a part writes: tokens, bytes, and no document on both sides."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from corpora import TEXTS, texts_of, write_rows
from hypothesis import given
from hypothesis import strategies as st

from mhc_model.tokenizer import FastTokenizer, Tokenizer
from train.data import ShardedTokens
from train.prepare import prepare


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
