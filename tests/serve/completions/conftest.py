"""A model whose completions take seconds, and conversations over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from mhc_model import save_checkpoint


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
