"""A tokenizer trained here, and GPT-2's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tokenizer_cases import CORPUS

from mhc_model.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=400)


@pytest.fixture(scope="session")
def gpt2_file() -> Path:
    default = Path(__file__).parents[4] / "shared" / "data"
    path = Path(os.environ.get("MHC_SHARED_DATA", default)) / "gpt2-bpe" / "gpt2.tiktoken"
    if not path.exists():
        pytest.skip(f"GPT-2's vocabulary is not at {path}; set MHC_SHARED_DATA")
    return path


@pytest.fixture(scope="session")
def gpt2(gpt2_file: Path) -> Tokenizer:
    return Tokenizer.from_tiktoken_file(gpt2_file)
