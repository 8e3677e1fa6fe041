"""Sources whose config.json asks for more than their weights are."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from mhc_model import CheckpointError, ConfigError
from mhc_model.conversion import convert

MOST = 200 * 1024  # KiB


@pytest.fixture(params=["llama", "gpt2"])
def source(
    request: pytest.FixtureRequest, theirs: Callable[..., PreTrainedModel], tmp_path: Path
) -> Path:
    theirs(request.param).save_pretrained(tmp_path / "original")
    return tmp_path / "original"


LLAMA = (
    *("vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_size", "head_dim", "intermediate_size", "max_position_embeddings"),
)
GPT2 = ("vocab_size", "n_layer", "n_head", "n_embd", "n_inner", "n_positions")


@pytest.mark.parametrize("size", [10**9, 2**20, 10**12, 2**64, "many", -1, [1], None, 1e400])
@pytest.mark.parametrize("number", range(8))
def test_a_size_that_is_not_that_of_the_weights(source: Path, number: int, size: Any) -> None:
    entries = json.loads((source / "config.json").read_text())
    names = LLAMA if entries["model_type"] == "llama" else GPT2
    name = names[number % len(names)]
    optional = name in ("num_key_value_heads", "head_dim", "n_inner") and size is None
    if optional or (name == "max_position_embeddings" and size == 2**20):
        pytest.skip("this one is allowed")
    (source / "config.json").write_text(json.dumps({**entries, name: size}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((CheckpointError, ConfigError)) as error:
        convert(source, source.parent / "out")
    assert len(str(error.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, "[]", "9" * 5000, "{"])
def test_json_that_is_no_object(
    theirs: Callable[..., PreTrainedModel], files: dict[str, bytes], tmp_path: Path, name: str,
    content: str,
) -> None:  # fmt: skip
    theirs("llama").save_pretrained(tmp_path)
    for file, value in files.items():
        (tmp_path / file).write_bytes(value)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "model.safetensors.index.json"],
)
def test_a_pipe_in_place_of_a_file(source: Path, name: str) -> None:
    (source / name).unlink(missing_ok=True)
    os.mkfifo(source / name)
    with pytest.raises(CheckpointError, match=f"{name}.*no regular file"):
        convert(source, source.parent / "out")


def test_a_pipe_in_place_of_a_gguf_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    for source in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(CheckpointError, match=r"model\.gguf"):
            convert(source, tmp_path / "out")


@pytest.mark.parametrize("ends", ["</s>", [1, "a"], {"a": 1}, 10**12, -1, 1.5])
def test_ends_that_are_no_token_ids(
    theirs: Callable[..., PreTrainedModel], files: dict[str, bytes], tmp_path: Path, ends: Any
) -> None:
    theirs("llama").save_pretrained(tmp_path)
    for file, value in files.items():
        (tmp_path / file).write_bytes(value)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id is"):
        convert(tmp_path, tmp_path / "out")
