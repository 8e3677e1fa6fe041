"""A tokenizer from a directory, whichever kind it holds."""

from __future__ import annotations

from pathlib import Path

from mhc_model.errors import CheckpointError, DataError
from mhc_model.files import MAX_TOKENIZER, read_file
from mhc_model.tokenizer.base import CONFIG_FILE, FAST_FILE, RANKS_FILE, TEMPLATE_FILE, Tokenizer
from mhc_model.tokenizer.fast_tokenizer import FastTokenizer, tokenizer_files
from mhc_model.tokenizer.tiktoken_tokenizer import TiktokenTokenizer


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote, or transformers' tokenizer files, whoever saved them.

    Raises:
        CheckpointError: if a file is missing or malformed.
    """
    directory = Path(directory)
    path = directory / CONFIG_FILE
    config = read_file(path, MAX_TOKENIZER) if path.exists() else b""
    ours, theirs = b'"pattern"' in config, b'"model_max_length"' in config
    fast, ranks = ((directory / name).exists() for name in (FAST_FILE, RANKS_FILE))
    if ranks or not fast or (ours and not theirs):
        return TiktokenTokenizer.load(directory)
    return _saved_by_transformers(directory) if ours else FastTokenizer.load(directory)


def _saved_by_transformers(directory: Path) -> Tokenizer:
    """A tokenizer of ours without its ranks: transformers keeps tokenizer.json alone.

    Tokens that were added to it are no ranks: with them it is what transformers made of it.
    """
    pattern, special = TiktokenTokenizer.read_rules(directory)
    files = tokenizer_files(directory)
    fast = FastTokenizer.from_files(files, source=str(directory), separator=special)
    count = fast.eos_id
    if fast.vocab_size > count + 1:
        return fast
    ranks = {fast.token_bytes(i): i for i in range(count)}
    try:
        return TiktokenTokenizer(ranks, pattern, special, files.get(TEMPLATE_FILE))
    except DataError as error:
        raise CheckpointError(f"tokenizer in {directory}: {error}") from None


Tokenizer.from_directory = staticmethod(load_tokenizer)
Tokenizer.from_tiktoken_file = TiktokenTokenizer.from_file
Tokenizer.from_name = TiktokenTokenizer.from_name
Tokenizer.train = TiktokenTokenizer.train
