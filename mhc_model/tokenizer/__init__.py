"""Text to token ids and back.

In: a directory, a rank file, a vocabulary's name, or texts to learn from. Out: a `Tokenizer`, which
turns text into ids and ids into bytes. May import the ground (errors) and tokenizer libraries.

    base.py                 `Tokenizer`: what every kind offers
    tiktoken_tokenizer.py   ranks and one special token: GPT-2's vocabulary, or one trained here
    fast_tokenizer.py       the tokenizer.json of a converted model
    tokenizer_json.py       ranks as a tokenizer.json, for transformers
    load.py                 the right kind for a directory
"""

from mhc_model.tokenizer.base import (
    CONFIG_FILE,
    FAST_FILE,
    RANKS_FILE,
    TEMPLATE_FILE,
    Tokenizer,
    without_surrogates,
)
from mhc_model.tokenizer.fast_tokenizer import FastTokenizer, tokenizer_files
from mhc_model.tokenizer.load import load_tokenizer
from mhc_model.tokenizer.tiktoken_tokenizer import GPT2_PATTERN, TiktokenTokenizer

__all__ = [
    "CONFIG_FILE",
    "FAST_FILE",
    "GPT2_PATTERN",
    "RANKS_FILE",
    "TEMPLATE_FILE",
    "FastTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_files",
    "without_surrogates",
]
