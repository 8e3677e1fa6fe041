"""The tokenizer of a converted model: its ids, its ends and beginnings, and what is refused."""

from __future__ import annotations

import json

import pytest
from converted_files import CORPUS, PADDED, TEXTS
from tokenizers import Tokenizer as Fast
from tokenizers import pre_tokenizers, processors
from tokenizers.models import WordLevel

from mhc_model import CheckpointError
from mhc_model.errors import DataError
from mhc_model.tokenizer import FastTokenizer, Tokenizer


def test_text_survives_and_no_text_makes_special_tokens(fast_tokenizer: FastTokenizer) -> None:
    for text in TEXTS:
        ids = fast_tokenizer.encode(text)
        assert fast_tokenizer.decode(ids) == text
        assert not set(ids) & set(fast_tokenizer.special_tokens.values())
    assert fast_tokenizer.encode_batch(TEXTS) == [fast_tokenizer.encode(text) for text in TEXTS]
    assert fast_tokenizer.decode(fast_tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_ids_are_those_of_the_file(fast_tokenizer: FastTokenizer, files: dict[str, bytes]) -> None:
    fast = Fast.from_str(files["tokenizer.json"].decode())
    for text in TEXTS[:-1]:
        assert fast_tokenizer.encode(text) == fast.encode(text, add_special_tokens=False).ids


def test_token_bytes(fast_tokenizer: FastTokenizer) -> None:
    assert fast_tokenizer.vocab_size == PADDED
    lengths = fast_tokenizer.token_byte_lengths()
    assert lengths.shape == (PADDED,)
    for text in TEXTS:
        assert int(lengths[fast_tokenizer.encode(text)].sum()) == len(text.encode())
    for special in fast_tokenizer.special_tokens.values():
        assert fast_tokenizer.token_bytes(special) == b""
    think = fast_tokenizer.encode("<think>")
    assert (len(think), fast_tokenizer.decode_bytes(think)) == (1, b"<think>")
    assert fast_tokenizer.token_bytes(PADDED - 1) == b"", "padding"
    with pytest.raises(DataError, match=f"{PADDED}.*0 to {PADDED - 1}"):
        fast_tokenizer.token_bytes(PADDED)


def test_ends_and_beginnings(fast_tokenizer: FastTokenizer, files: dict[str, bytes]) -> None:
    end, other = (
        fast_tokenizer.special_tokens["<|im_end|>"],
        fast_tokenizer.special_tokens["<|endoftext|>"],
    )
    assert (fast_tokenizer.bos_id, fast_tokenizer.eos_ids, fast_tokenizer.start_id) == (
        None,
        (end,),
        end,
    )
    assert fast_tokenizer.encode("ab", bos=True) == fast_tokenizer.encode("ab")
    assert fast_tokenizer.encode_documents(["ab"]) == [[*fast_tokenizer.encode("ab"), end]]
    several = FastTokenizer.from_files(files, eos_ids=[other])
    assert several.eos_ids == (other, end)
    with pytest.raises(CheckpointError, match="end-of-text"):
        FastTokenizer.from_files({"tokenizer.json": files["tokenizer.json"]})


@pytest.mark.parametrize("how", ["template", "config"])
def test_a_model_whose_texts_begin_with_a_token(files: dict[str, bytes], how: str) -> None:
    fast = Fast.from_str(files["tokenizer.json"].decode())
    start = fast.token_to_id("<|im_start|>")
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    if how == "template":
        fast.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
        )
    else:
        config["add_bos_token"] = True
    tokenizer = FastTokenizer.from_files(
        {
            "tokenizer.json": fast.to_str().encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }
    )
    assert tokenizer.bos_id == tokenizer.start_id == start
    assert tokenizer.encode("ab", bos=True) == [start, *tokenizer.encode("ab")]
    assert start not in tokenizer.encode("ab")
    assert tokenizer.encode_documents(["ab"])[0][0] == start


def test_a_rendered_conversation(fast_tokenizer: FastTokenizer) -> None:
    ids = fast_tokenizer.encode_marked("<|im_start|>user\nhi<|im_end|>")
    assert ids[0] == fast_tokenizer.special_tokens["<|im_start|>"]
    assert ids[-1] == fast_tokenizer.eos_id
    assert ids[1:-1] == fast_tokenizer.encode("user\nhi")
    ours = Tokenizer.train(CORPUS, vocab_size=280)
    assert ours.encode_marked("a<|bos|>b") == [*ours.encode("a"), ours.bos_id, *ours.encode("b")]


def test_other_kinds_are_refused(files: dict[str, bytes]) -> None:
    words = Fast(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(CheckpointError, match=r"WordLevel.*byte-level BPE"):
        FastTokenizer.from_files({**files, "tokenizer.json": words.to_str().encode()})
    with pytest.raises(CheckpointError, match="the model only 300 ids"):
        FastTokenizer.from_files(files, vocab_size=300)
