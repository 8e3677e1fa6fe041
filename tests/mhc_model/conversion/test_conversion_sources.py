"""Which of the files in a directory are the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from mhc_model import CheckpointError
from mhc_model.conversion.sources import read_source

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(theirs: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    theirs("qwen3").save_pretrained(tmp_path / "original", max_shard_size="20KB")
    return tmp_path / "original"


def test_two_sets_of_weights_are_refused(
    sharded: Path, theirs: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    """One of them is old, and nothing tells which."""
    theirs("qwen3", seed=1).save_pretrained(tmp_path / "new")
    new = tmp_path / "new" / "model.safetensors"
    (sharded / "model.safetensors").write_bytes(new.read_bytes())
    with pytest.raises(CheckpointError, match=r"has model\.safetensors, and .*two sets of weights"):
        read_source(sharded)
    (sharded / INDEX).unlink()
    found = read_source(sharded).tensors
    for key, value in load_file(new).items():
        assert torch.equal(found[key], value)


def test_an_index_of_the_single_file(
    theirs: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    theirs("llama").save_pretrained(tmp_path)
    keys = load_file(tmp_path / "model.safetensors")
    index = {"weight_map": dict.fromkeys(keys, "model.safetensors")}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert read_source(tmp_path).tensors.keys() == keys.keys()


def test_an_adapter_beside_the_weights_is_refused(sharded: Path) -> None:
    (sharded / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json.*merge"):
        read_source(sharded)


def test_shards_that_disagree_are_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    key, shard = next(iter(index["weight_map"].items()))
    other = next(name for name in index["weight_map"].values() if name != shard)
    save_file({**load_file(sharded / other), key: load_file(sharded / shard)[key]}, sharded / other)
    with pytest.raises(CheckpointError, match=f"both have the tensor '{key}'"):
        read_source(sharded)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", 3, "a\0b"])
def test_shards_outside_the_directory_are_refused(sharded: Path, name: object) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no plain name"):
        read_source(sharded)


def test_numbers_that_are_no_weights_are_refused(
    theirs: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    theirs("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, key: tensors[key].to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"'{key}' is stored as I8"):
        read_source(tmp_path)


def test_other_ways_to_name_the_weights_are_refused(
    theirs: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    theirs("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "transformers_weights": "other.safetensors"}))
    with pytest.raises(CheckpointError, match=r"transformers_weights is 'other\.safetensors'"):
        read_source(tmp_path)
    path.write_text(json.dumps({**entries, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(CheckpointError, match="quantization_config"):
        read_source(tmp_path)
