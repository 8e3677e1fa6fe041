"""A model whose completions take seconds, and conversations over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast

from mhc_model import save_checkpoint
from mhc_model.tokenizer import FastTokenizer, Tokenizer


def _fast_tokenizer(source: Tokenizer, *special: str, **config: Any) -> FastTokenizer:
    fast = Fast.from_str(source.files["tokenizer.json"].decode())
    fast.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    files = {
        "tokenizer.json": fast.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
    return FastTokenizer.from_files(files)


@pytest.fixture(scope="session")
def make_fast(tokenizer) -> Callable[..., FastTokenizer]:
    """`make_fast("<|mark|>", ..., eos_token=...)`: as a converted model brings it, without BOS."""

    def make(*special: str, **config: Any) -> FastTokenizer:
        return _fast_tokenizer(tokenizer, *special, **config)

    return make


@pytest.fixture(scope="session")
def startless_checkpoint(tmp_path_factory, make_fast, tiny_model) -> Path:
    """A model whose texts begin with no token, as Qwen's and GPT-2's."""
    directory = tmp_path_factory.mktemp("startless") / "startless"
    own = make_fast("<|im_start|>", "<|im_end|>", bos_token=None, eos_token="<|im_end|>")
    model = tiny_model(vocab_size=own.vocab_size, max_seq_len=96)
    save_checkpoint(directory, model, own)
    return directory


@pytest.fixture(scope="session")
def long_checkpoint(tmp_path_factory, tokenizer, tiny_model) -> Path:
    """Its completions take many seconds."""
    directory = tmp_path_factory.mktemp("long") / "long"
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=2048)
    save_checkpoint(directory, model, tokenizer)
    return directory


@pytest.fixture
def chat(call) -> Callable[..., httpx.Response]:
    """`chat(**fields)`: one POST /v1/chat/completions."""

    def send(**fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "a"}], "temperature": 0, **fields}
        return call("POST", "/v1/chat/completions", json=body)

    return send
