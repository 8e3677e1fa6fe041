"""Shared data where it is there, a tokenizer, and tiny models for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evals.tasks import document, load_problems
from mhc_model.decoder import Decoder
from mhc_model.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of GSM8K and other files; tests that need it are skipped without it."""
    default = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    directory = Path(os.environ.get("MHC_SHARED_DATA", default)).resolve()
    if not (directory / "gsm8k").is_dir():
        pytest.skip("no shared data: set MHC_SHARED_DATA to a directory with gsm8k/")
    return directory


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([document(p) for p in load_problems("builtin:1", "train", 500)], 300)


@pytest.fixture(scope="session")
def make_model(tokenizer, tiny_model):
    """`make_model(mhc=True, context=128)`: 2 layers of width 32, all weights random."""

    def make(mhc: bool = True, context: int = 128) -> Decoder:
        return tiny_model(
            plain=not mhc, vocab_size=tokenizer.vocab_size, n_layers=2, max_seq_len=context
        )

    return make
