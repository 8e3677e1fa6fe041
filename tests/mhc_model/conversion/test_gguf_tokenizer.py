"""The tokenizers of GGUF files: what is left out, and what does not fit together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mhc_model import CheckpointError
from mhc_model.conversion.gguf_metadata import Metadata
from mhc_model.conversion.gguf_tokenizer import SPLITS, gguf_tokenizer
from mhc_model.tokenizer import FastTokenizer
from mhc_model.tokenizer.tokenizer_json import byte_alphabet

SPECIALS = ("<s>", "</s>", "<eot>", "<eom>")
NAMES = [*SPECIALS, *byte_alphabet(), "ab", "12"]
TYPES = [3 if name in SPECIALS else 1 for name in NAMES]


def build(without: str = "", **changes: Any) -> FastTokenizer | None:
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": NAMES,
        "token_type": TYPES,
        "merges": ["a b", "1 2"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    values.pop(without, None)
    return gguf_tokenizer(
        Metadata({f"tokenizer.ggml.{key}": value for key, value in values.items()}, "m.gguf"), 272
    )


# llama.cpp's src/llama-vocab.cpp sets add_bos for these names, and no other that is known here.
BEGIN = ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"]


@pytest.mark.parametrize("split", list(SPLITS))
def test_whether_texts_begin_with_a_token(split: str) -> None:
    for given, expected in ((None, split in BEGIN), (True, True), (False, False)):
        tokenizer = build(pre=split, **({} if given is None else {"add_bos_token": given}))
        assert tokenizer is not None
        assert tokenizer.bos_id == (0 if expected else None)
        assert tokenizer.encode("x", bos=True)[:1] == ([0] if expected else tokenizer.encode("x"))
        config = json.loads(tokenizer.files["tokenizer_config.json"])
        assert config["add_bos_token"] is expected


def test_a_split_that_is_not_named_is_llama_cpps_default() -> None:
    for tokenizer in (build(without="pre"), build(pre=""), build(pre="default")):
        assert tokenizer is not None
        pieces = tokenizer._fast.pre_tokenizer.pre_tokenize_str("a+b, 12345 it's")
        alphabet = dict(zip(byte_alphabet(), range(256), strict=True))
        texts = [bytes(alphabet[c] for c in piece).decode() for piece, _ in pieces]
        assert texts == ["a", "+", "b", ",", " ", "123", "45", " it", "'", "s"]


def test_types_that_are_not_given_are_normal() -> None:
    tokenizer = build(without="token_type")
    assert tokenizer is not None
    assert tokenizer.special_tokens == {}


def test_every_end_that_the_file_names() -> None:
    tokenizer = build(eot_token_id=2, eom_token_id=3)
    assert tokenizer is not None
    assert tokenizer.eos_ids == (1, 2, 3)
    names = ["<|eot_id|>", *NAMES[1:]]
    by_name = build(tokens=names, token_type=[1] * len(names), bos_token_id=2)
    assert by_name is not None
    assert by_name.eos_ids == (1, 0)
    assert by_name.special_tokens == {"<|eot_id|>": 0}, (
        "such a name is control whatever the file says"
    )


def test_llama_cpps_token_where_none_is_named() -> None:
    """11, Falcon's <|endoftext|>: as long as it is no ordinary text."""
    names = [*NAMES[4:15], "<sep>", *NAMES[15:]]
    types = [3 if name == "<sep>" else 1 for name in names]
    changes: dict[str, Any] = {"tokens": names, "token_type": types, "pre": "llama-bpe"}
    changes |= {"bos_token_id": None, "eos_token_id": 10**6}
    tokenizer = build(**changes)
    assert tokenizer is not None
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (11, (11,))


def test_no_tokenizer() -> None:
    assert build(without="model") is None
    assert build(model="none") is None
    assert build(model="no_vocab") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"pre": "exotic"}, "tokenizer.ggml.pre 'exotic'"),
        ({"pre": 3}, "tokenizer.ggml.pre is 3; it must be a text"),
        ({"tokens": None}, "has no entry 'tokenizer.ggml.tokens'"),
        ({"tokens": "abc"}, "tokens must be a list"),
        ({"tokens": [*NAMES, *map(str, range(20, 40))]}, "tokens has 282 entries, the model only"),
        ({"tokens": [*NAMES[:-1], "ab"]}, "a token twice"),
        ({"token_type": [1]}, "token_type has 1 entries for 262 tokens"),
        ({"merges": None}, "no entry 'tokenizer.ggml.merges'"),
        ({"merges": ["ab"]}, "merges has 'ab'"),
        ({"merges": ["a nothing"]}, "tokenizer.ggml.merges"),
        ({"merges": [1]}, "merges must be a list, each entry a text"),
        ({"eos_token_id": None}, "no token that ends a text"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'; it must be a whole number"),
        ({"bos_token_id": None, "add_bos_token": True}, "does not name it; llama.cpp would take"),
        ({"bos_token_id": 10**9, "pre": "llama-bpe"}, "does not name it"),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes'; it must be true or false"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.gguf.*{message}"):
        build(**change)
