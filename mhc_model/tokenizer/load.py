"""A tokenizer from a directory, whichever kind it holds."""

from __future__ import annotations

from pathlib import Path

from mhc_model.tokenizer.base import CONFIG_FILE, FAST_FILE, RANKS_FILE, Tokenizer
from mhc_model.tokenizer.fast_tokenizer import FastTokenizer
from mhc_model.tokenizer.tiktoken_tokenizer import TiktokenTokenizer
from mhc_model.untrusted import read_file


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote, or transformers' tokenizer files.

    Raises:
        CheckpointError: if a file is missing or malformed.
    """
    directory = Path(directory)
    config = directory / CONFIG_FILE
    ours = config.exists() and b'"pattern"' in read_file(config)
    if ours or (directory / RANKS_FILE).exists() or not (directory / FAST_FILE).exists():
        return TiktokenTokenizer.load(directory)
    return FastTokenizer.load(directory)


Tokenizer.from_directory = staticmethod(load_tokenizer)
Tokenizer.from_tiktoken_file = TiktokenTokenizer.from_file
Tokenizer.from_name = TiktokenTokenizer.from_name
Tokenizer.train = TiktokenTokenizer.train
