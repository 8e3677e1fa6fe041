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

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mhc_model.checkpoint.remote_code import REMOTE_CODE, config_entries
from mhc_model.config import ModelConfig
from mhc_model.decoder import Decoder, quiet_about_mixing
from mhc_model.errors import CheckpointError
from mhc_model.files import file_sha256
from mhc_model.settings import validate_settings
from mhc_model.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG
from mhc_model.tokenizer import FAST_FILE, RANKS_FILE, Tokenizer, load_tokenizer

FORMAT = 1
CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "manifest.json"
# What decides the output: the code shim and metadata may differ between equal checkpoints.
HASHED = (CONFIG, WEIGHTS, RANKS_FILE, TOKENIZER_CONFIG)


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
        content_hash = _write_files(staging, model, tokenizer, dict(metadata or {}))
        _rename_over(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return content_hash


def _write_files(
    staging: Path, model: Decoder, tokenizer: Tokenizer | None, metadata: dict[str, Any]
) -> str:
    ends = _generation_ends(tokenizer)
    config = {
        **config_entries(model.config),
        **ends,
        "mhc_gates": model.config.model_dump(mode="json"),
    }
    generation = {**ends, "use_cache": False}
    _write_json(staging / CONFIG, config)
    _write_json(staging / "generation_config.json", generation)
    (staging / "modeling_mhc_gates.py").write_text(REMOTE_CODE, encoding="utf-8")
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
    content_hash = _content_hash(files)
    manifest = {
        "format": FORMAT,
        "content_hash": content_hash,
        "files": files,
        "metadata": metadata,
    }
    _write_json(staging / MANIFEST, manifest)
    for path in staging.iterdir():
        _sync(path)
    _sync(staging)
    return content_hash


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
    with quiet_about_mixing():
        model = Decoder(model_config, seed=None)
    _load_weights(model, directory / WEIGHTS)
    tokenizer = checkpoint_tokenizer(directory)
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
    try:
        with safe_open(directory / WEIGHTS, "pt") as weights:
            dtype: torch.dtype = weights.get_slice("embedding.weight")[:1].dtype
    except SafetensorError as error:
        raise CheckpointError(f"{directory / WEIGHTS} cannot be read: {error}") from None
    return dtype


def read_model_config(directory: Path) -> ModelConfig:
    """The configuration of a checkpoint directory, without its weights.

    Raises:
        CheckpointError, ConfigError: if config.json is not ours, or malformed.
    """
    config = _read_json(directory / CONFIG)
    if "mhc_gates" not in config:
        raise CheckpointError(f"{directory / CONFIG} has no entry 'mhc_gates': not our format")
    return validate_settings(ModelConfig, config["mhc_gates"], str(directory / CONFIG))


def cast_matrices(model: Decoder, dtype: torch.dtype) -> None:
    """Casts embeddings and matrices in place; connections and gates stay float32 (mHC needs it)."""
    for name, parameter in model.named_parameters():
        if "connection." not in name and name != "gate_logits":
            parameter.data = parameter.data.to(dtype)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint directory that `path` means.

    `path` itself, `path/model`, or the newest whole `path/step-*/model` of a run directory.

    Raises:
        CheckpointError: saying what was looked for.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory: give a checkpoint or a run directory")
    steps = [p for p in path.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    newest_first = sorted(steps, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)
    problems = []
    for candidate in [path, path / "model", *(step / "model" for step in newest_first)]:
        if not (candidate / MANIFEST).exists():
            continue
        problem = _incompleteness(candidate)
        if problem is None:
            return candidate
        problems.append(problem)
    if problems:
        raise CheckpointError(f"no whole checkpoint in {path}: " + "; ".join(problems))
    raise CheckpointError(
        f"no checkpoint in {path}: looked for {MANIFEST} in it, in model/ and in step-*/model/"
    )


def checkpoint_hash(path: str | Path) -> str:
    """The content hash that the manifest of a checkpoint or run directory states."""
    content_hash: str = _read_json(find_checkpoint(path) / MANIFEST)["content_hash"]
    return content_hash


def _incompleteness(directory: Path) -> str | None:
    """What is missing or truncated in a checkpoint directory, by name and size only."""
    try:
        files = _read_manifest(directory)["files"]
    except CheckpointError as error:
        return str(error)
    for name, entry in files.items():
        file = directory / name
        if not file.exists():
            return f"{file} is missing"
        if file.stat().st_size != entry["size"]:
            return f"{file} has {file.stat().st_size} bytes, the manifest says {entry['size']}"
    return None


def _read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, with every entry that loading relies on there and of its type."""
    path = directory / MANIFEST
    manifest = _read_json(path)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {manifest.get('format')!r}; known: {FORMAT}")
    for key, kind in (("content_hash", str), ("files", dict), ("metadata", dict)):
        if not isinstance(manifest.get(key), kind):
            raise CheckpointError(f"{path} has no entry {key!r}, or not of type {kind.__name__}")
    for name in {CONFIG, WEIGHTS, *manifest["files"]}:
        entry = manifest["files"].get(name)
        if not isinstance(entry, dict) or not {"size", "sha256"} <= entry.keys():
            raise CheckpointError(f"{path} does not state size and sha256 of {name}")
    return manifest


def verified_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint directory whose files are the ones that it states.

    Raises:
        CheckpointError: naming the file that was altered, or what the manifest lacks.
    """
    manifest = _read_manifest(directory)
    for name, entry in manifest["files"].items():
        if file_sha256(directory / name) != entry["sha256"]:
            raise CheckpointError(
                f"{directory / name} was altered: its sha256 is not the manifest's"
            )
    if _content_hash(manifest["files"]) != manifest["content_hash"]:
        raise CheckpointError(f"{directory / MANIFEST} states a wrong content hash")
    return manifest


def _load_weights(model: Decoder, file: Path) -> None:
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from None
    expected = model.state_dict()
    for name, value in expected.items():
        if name not in weights:
            raise CheckpointError(f"{file} lacks the tensor {name!r}")
        if weights[name].shape != value.shape:
            raise CheckpointError(
                f"{file}: {name!r} has shape {tuple(weights[name].shape)}, "
                f"the configuration needs {tuple(value.shape)}"
            )
    unknown = sorted(set(weights) - set(expected))
    if unknown:
        raise CheckpointError(f"{file} has the unknown tensor {unknown[0]!r}")
    model.load_state_dict(weights, assign=True)


def _content_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    # tokenizer.json decides the tokens only where there are no ranks to make it from.
    names = HASHED if RANKS_FILE in files else (*HASHED, FAST_FILE)
    lines = [f"{name} {files[name]['sha256']}\n" for name in names if name in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    """Flushes a file or directory to the disk, so that a rename never precedes its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
