"""The checkpoint directory: one format for training, evaluation, serving and transformers.

    config.json             transformers' entries and, under `mhc_gates`, our ModelConfig
    model.safetensors       the decoder's state dict
    tokenizer.*             see `Tokenizer.save`
    generation_config.json  token ids at which generation starts and stops
    modeling_mhc_gates.py   lets transformers load the directory with trust_remote_code=True
    manifest.json           size and sha256 of every file, the content hash, free metadata

A directory is written under a temporary name and renamed when it is complete, so a directory with
a manifest is whole unless something damaged it later; loading checks the hashes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mhc_model.checkpoint.found import (
    CONFIG,
    FORMAT,
    MANIFEST,
    OURS,
    content_hash,
    find_checkpoint,
    verified_manifest,
)
from mhc_model.checkpoint.remote_code import config_entries, write_remote_code
from mhc_model.checkpoint.shapes import check_shapes, own_names, own_weights, with_tensors
from mhc_model.checkpoint.weights import WEIGHTS
from mhc_model.config import ModelConfig
from mhc_model.decoder import Decoder
from mhc_model.errors import CheckpointError
from mhc_model.files import file_sha256, read_object
from mhc_model.settings import validate_settings
from mhc_model.tokenizer import FAST_FILE, RANKS_FILE, Tokenizer, load_tokenizer

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint directory."""

    model: Decoder
    tokenizer: Tokenizer | None
    content_hash: str
    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    directory: str | Path,
    model: Decoder,
    tokenizer: Tokenizer | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> str:
    """Writes a checkpoint directory atomically.

    Args:
        directory: the directory to create.
        model: its weights are saved in the dtype and values they have now.
        tokenizer: saved beside the weights; without it the engine takes and gives token ids only.
        metadata: JSON values kept in manifest.json (training step, losses, ...); not hashed.
        overwrite: replace an existing checkpoint; otherwise an existing directory is an error.

    Returns:
        The content hash, sha256 hex.

    Raises:
        CheckpointError: if the directory exists (and `overwrite` is not set, or it is no
            checkpoint), or the tokenizer has more ids than the model.
    """
    directory = Path(directory)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only "
            f"{model.config.vocab_size}; set the model's vocab_size from the tokenizer"
        )
    if directory.exists() and not (overwrite and (directory / MANIFEST).exists()):
        raise CheckpointError(
            f"{directory} exists; give another directory"
            + (", it is no checkpoint and is not replaced" if overwrite else " or overwrite=True")
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.tmp-", dir=directory.parent))
    try:
        own_hash = _write_files(staging, model, tokenizer, dict(metadata or {}))
        _rename_over(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return own_hash


def _write_files(
    staging: Path, model: Decoder, tokenizer: Tokenizer | None, metadata: dict[str, Any]
) -> str:
    ends = _generation_ends(tokenizer)
    config = {
        **config_entries(model.config),
        **ends,
        "mhc_gates": model.config.model_dump(mode="json"),
    }
    _write_json(staging / CONFIG, config)
    _write_json(staging / "generation_config.json", ends)
    write_remote_code(staging)
    if tokenizer is not None:
        tokenizer.save(staging)
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    save_file(weights, staging / WEIGHTS, metadata={"format": "pt"})
    files = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(staging.iterdir())
    }
    own_hash = content_hash(files)
    manifest = {
        "format": FORMAT,
        "content_hash": own_hash,
        "files": files,
        "metadata": metadata,
    }
    _write_json(staging / MANIFEST, manifest)
    for path in staging.iterdir():
        _sync(path)
    _sync(staging)
    return own_hash


def _generation_ends(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Entries that tell transformers where texts begin and end."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None}
    several = len(tokenizer.eos_ids) > 1
    ends = list(tokenizer.eos_ids) if several else tokenizer.eos_id
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends}


def _rename_over(staging: Path, directory: Path) -> None:
    staging.chmod(0o755)  # mkdtemp makes it private
    if directory.exists():
        # A full directory cannot be replaced in one rename; the old one waits under a name that
        # no reader takes for a checkpoint until the new one is in place.
        retired = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old-", dir=directory.parent))
        directory.rename(retired / "old")
        staging.rename(directory)
        shutil.rmtree(retired)
    else:
        staging.rename(directory)
    _sync(directory.parent)


def load_checkpoint(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """Loads and verifies a checkpoint.

    Args:
        path: a checkpoint directory, or a run directory (its newest whole checkpoint is taken).
        device: where the model goes.
        dtype: of the matrices and embeddings; None keeps the saved one. The parameters of the
            connections and gates stay float32 in any case.

    Raises:
        CheckpointError: naming the file, and the key where there is one.
    """
    directory = find_checkpoint(path)
    manifest = verified_manifest(directory)
    model_config = read_model_config(directory)
    weights = own_weights(directory)
    check_shapes(model_config, weights)
    tokenizer = checkpoint_tokenizer(directory)
    model = with_tensors(model_config, own_names(weights.load()))
    model = model.to(device)
    if dtype is not None:
        cast_matrices(model, dtype)
    return Checkpoint(
        model=model.eval(),
        tokenizer=tokenizer,
        content_hash=manifest["content_hash"],
        path=directory,
        metadata=manifest["metadata"],
    )


def checkpoint_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a whole checkpoint directory; None if it was saved without."""
    if not any((directory / name).exists() for name in (RANKS_FILE, FAST_FILE)):
        return None
    return load_tokenizer(directory)


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of the embedding, and so of the matrices, in a checkpoint directory.

    Raises:
        CheckpointError: if the weights cannot be read.
    """
    stored = own_weights(directory).stored.get("embedding.weight")
    if stored is None:
        raise CheckpointError(f"{directory} has no tensor 'embedding.weight'")
    return DTYPES[stored.dtype]


def read_model_config(directory: Path) -> ModelConfig:
    """The configuration of a checkpoint directory, without its weights.

    Raises:
        CheckpointError, ConfigError: if config.json is not ours, or malformed.
    """
    config = read_object(directory / CONFIG)
    if OURS not in config:
        raise CheckpointError(f"{directory / CONFIG} has no entry {OURS!r}: not our format")
    return validate_settings(ModelConfig, config[OURS], str(directory / CONFIG))


def cast_matrices(model: Decoder, dtype: torch.dtype) -> None:
    """Casts embeddings and matrices in place; connections and gates stay float32 (mHC needs it)."""
    for name, parameter in model.named_parameters():
        if "connection." not in name and name != "gate_logits":
            parameter.data = parameter.data.to(dtype)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    """Flushes a file or directory to the disk, so that a rename never precedes its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
