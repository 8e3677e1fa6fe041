"""Checkpoints whose configuration asks for more than their weights are."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from mhc_model import (
    CheckpointError,
    ConfigError,
    Decoder,
    MHCConfig,
    ModelConfig,
    load_checkpoint,
    save_checkpoint,
)
from mhc_model.checkpoint import MANIFEST, checkpoint_hash, find_checkpoint
from mhc_model.checkpoint.found import content_hash
from mhc_model.files import file_sha256
from mhc_model.tokenizer import Tokenizer

SIZES = {"vocab_size": 257, "n_layers": 2, "n_heads": 2, "d_model": 16, "max_seq_len": 32}
MOST = 200 * 1024  # KiB


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = Tokenizer.train(["abc"], vocab_size=257)
    model = Decoder(ModelConfig(**SIZES, mhc=MHCConfig()))
    save_checkpoint(tmp_path / "checkpoint", model, tokenizer)
    return tmp_path / "checkpoint"


def sign(directory: Path) -> None:
    """Makes the manifest that of the files as they are."""
    manifest = json.loads((directory / MANIFEST).read_text())
    for name in manifest["files"]:
        path = directory / name
        manifest["files"][name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    manifest["content_hash"] = content_hash(manifest["files"])
    (directory / MANIFEST).write_text(json.dumps(manifest))


def edit(directory: Path, name: str, **values: Any) -> None:
    """Changes the entry mhc_gates of a file."""
    content = json.loads((directory / name).read_text())
    content["mhc_gates"] |= values
    (directory / name).write_text(json.dumps(content))
    sign(directory)


@pytest.mark.parametrize("size", [10**9, 10**12, 2**62, 2**64, 10**30])
@pytest.mark.parametrize(
    "field",
    [
        *("vocab_size", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "mlp_ratio"),
        *("d_mlp", "max_seq_len"),
    ],
)
def test_a_size_that_is_not_that_of_the_weights(checkpoint: Path, field: str, size: int) -> None:
    edit(checkpoint, "config.json", **{field: size})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((CheckpointError, ConfigError)) as error:
        load_checkpoint(checkpoint)
    assert len(str(error.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST


def test_learned_positions_are_those_of_the_weights(tmp_path: Path) -> None:
    model = Decoder(ModelConfig(**SIZES, positions="learned"))
    save_checkpoint(tmp_path / "checkpoint", model)
    edit(tmp_path / "checkpoint", "config.json", max_seq_len=2**23)
    with pytest.raises(CheckpointError, match=r"'position_embedding\.weight' has shape \(32, 16\)"):
        load_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("size", [10**9, 10**12, 2**64, "many", -1, None, 1.5, True])
def test_a_vocabulary_that_is_not_the_models(tmp_path: Path, size: Any) -> None:
    """tokenizer_config.json of a converted model says how many ids there are."""
    from converted_files import PADDED, converted_files

    from mhc_model.tokenizer import FastTokenizer

    tokenizer = FastTokenizer(converted_files(), PADDED, None, [0])
    model = Decoder(ModelConfig(**{**SIZES, "vocab_size": PADDED}))
    save_checkpoint(tmp_path / "checkpoint", model, tokenizer)
    assert load_checkpoint(tmp_path / "checkpoint").tokenizer is not None
    edit(tmp_path / "checkpoint", "tokenizer_config.json", vocab_size=size)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, "[]", "9" * 5000])
def test_json_that_is_no_object(checkpoint: Path, name: str, content: str) -> None:
    (checkpoint / name).write_text(content)
    if name != MANIFEST:
        sign(checkpoint)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name",
    ["config.json", "manifest.json", "model.safetensors", "tokenizer.tiktoken", "tokenizer.json"],
)
def test_a_pipe_in_place_of_a_file(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    for read in (load_checkpoint, find_checkpoint, checkpoint_hash):
        if read is load_checkpoint or name == MANIFEST:
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                read(checkpoint)


def test_a_manifest_that_leads_elsewhere(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"]["../../etc/passwd"] = {"size": 1, "sha256": ""}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="no plain name"):
        load_checkpoint(checkpoint)
