"""Shared data where it is there, a tokenizer, and tiny models for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evals.__main__ import main
from evals.problems import load_problems
from evals.tasks import document
from mhc_model.checkpoint import save_checkpoint
from mhc_model.decoder import Decoder
from mhc_model.settings import RaySettings
from mhc_model.tokenizer import Tokenizer

# Before any test module imports Ray, which reads the authentication mode then.
RaySettings().init_arguments()


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
    """`make_model(mhc=True, context=128, **fields)`: 2 layers of width 32, random weights."""

    def make(mhc: bool = True, context: int = 128, **fields: Any) -> Decoder:
        values = {"vocab_size": tokenizer.vocab_size, "n_layers": 2, "max_seq_len": context}
        return tiny_model(plain=not mhc, **values, **fields)

    return make


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, make_model, tokenizer):
    """A directory with checkpoints `mhc`, `plain` and `named`, and their content hashes.

    `named` is `mhc` with two behaviours: direct stands for gates of 0, worked for 0.2 and 1.
    """
    root = tmp_path_factory.mktemp("checkpoints")
    behaviours = {
        "direct": {"gates": [0.0, 0.3], "at": 0.0},
        "worked": {"gates": [[0.1, 0.3], [1.0, 1.0]]},
    }
    models = {
        "mhc": make_model(),
        "plain": make_model(mhc=False),
        "named": make_model(behaviours=behaviours),
    }
    hashes = {name: save_checkpoint(root / name, one, tokenizer) for name, one in models.items()}
    return root, hashes


@pytest.fixture
def line(checkpoints, tmp_path):
    """The arguments of a small run into tmp_path/out."""
    return [
        *("--checkpoint", str(checkpoints[0] / "mhc"), "--out", str(tmp_path / "out")),
        *("--tasks", "gsm8k,bpb", "--limit", "12", "--max-tokens", "6", "--device", "cpu"),
    ]


@pytest.fixture
def short_directory() -> Iterator[str]:
    """Ray's socket paths must be short, and pytest's own directories are not."""
    directory = tempfile.mkdtemp(prefix="r-")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def evaluate(checkpoints, tmp_path_factory):
    """Runs the command in this process; returns the output directory."""

    def run(name: str = "mhc", *arguments: str):
        out = tmp_path_factory.mktemp("out")
        defaults = ["--tasks", "gsm8k,bpb", "--limit", "8", "--max-tokens", "8", "--device", "cpu"]
        line = ["--checkpoint", str(checkpoints[0] / name), "--out", str(out), *defaults]
        assert main([*line, *arguments]) == 0
        return out

    return run
