"""Models and engines that the tests of several of the engine's modules use."""

from __future__ import annotations

import itertools

import pytest
from engine_cases import spelling_model

from mhc_model import Decoder, Engine
from mhc_model.tokenizer import GPT2_PATTERN, TiktokenTokenizer, Tokenizer


@pytest.fixture(scope="session")
def model(tiny_model) -> Decoder:
    """A context of 96 tokens, 6 gates, 61 token ids."""
    return tiny_model(max_seq_len=96)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the end of document 256."""
    return TiktokenTokenizer({bytes([i]): i for i in range(256)}, GPT2_PATTERN, "<|end|>")


@pytest.fixture(scope="session")
def alphabet(byte_tokenizer) -> Engine:
    """Continues a with b, b with c, ... y with the two bytes of é, and these with z, which ends
    the document."""
    size = byte_tokenizer.vocab_size
    chain = [*range(ord("a"), ord("z")), *"é".encode(), ord("z"), size - 1]
    return Engine(spelling_model(size, itertools.pairwise(chain)), byte_tokenizer, max_batch=4)
