"""Small checkpoints that tests of commands share, and a tokenizer as a converted model has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from converted_files import PADDED, converted_files

from mhc_model import save_checkpoint
from mhc_model.commands.generate import PROMPT
from mhc_model.tokenizer import FastTokenizer, Tokenizer


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """Trained on the prompt of `python -m mhc_model generate`."""
    return Tokenizer.train([PROMPT * 20], 280)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tiny_model, small_tokenizer) -> Path:
    """A directory with the checkpoints `mhc` and `plain`: 2 layers, a context of 256 tokens."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in ("mhc", "plain"):
        fields = {"vocab_size": small_tokenizer.vocab_size, "n_layers": 2, "max_seq_len": 256}
        model = tiny_model(plain=name == "plain", **fields)
        save_checkpoint(root / name, model, small_tokenizer)
    return root


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """Tokenizer files of a converted model."""
    return converted_files()


@pytest.fixture(scope="session")
def fast_tokenizer(files: dict[str, bytes]) -> FastTokenizer:
    """The same, for a model whose vocabulary is padded."""
    return FastTokenizer.from_files(files, PADDED, eos_ids=[])


@pytest.fixture
def private_module_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers copies a checkpoint's code before it runs it: not into the home directory."""
    cache = tmp_path_factory.getbasetemp() / "modules"
    cache.mkdir(exist_ok=True)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(cache)
