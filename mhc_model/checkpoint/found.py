"""Which checkpoint a path means, whether it is whole, and what it is known by.

A directory that we wrote has a manifest, and is what the manifest says or refused. One that
transformers wrote (`save_pretrained`, its Trainer) has none: it is a checkpoint if it has our
configuration and weights, and is known by the hash of what it holds now.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mhc_model.checkpoint.weights import INDEX, WEIGHTS, find_weights
from mhc_model.errors import CheckpointError
from mhc_model.files import check_regular, file_sha256, plain_names, read_object
from mhc_model.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG
from mhc_model.tokenizer import FAST_FILE, RANKS_FILE

FORMAT = 1
CONFIG, MANIFEST = "config.json", "manifest.json"
OURS = "mhc_gates"  # the entry of config.json with our configuration
THEIRS = "transformers_version"  # what transformers adds: ours without a manifest is not whole
# What decides the output: the code shim and metadata may differ between equal checkpoints.
HASHED = (CONFIG, WEIGHTS, RANKS_FILE, TOKENIZER_CONFIG)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint directory that `path` means.

    `path` itself, `path/model`, or the newest whole `path/step-*/model` of a run directory. Without
    any of these, what transformers saved: `path`, or the newest `path/checkpoint-*` of its Trainer.

    Raises:
        CheckpointError: saying what was looked for.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory: give a checkpoint or a run directory")
    problems = []
    for candidate in [path, path / "model", *(step / "model" for step in _numbered(path, "step"))]:
        if not (candidate / MANIFEST).exists():
            continue
        problem = _incompleteness(candidate)
        if problem is None:
            return candidate
        problems.append(problem)
    if problems:
        raise CheckpointError(f"no whole checkpoint in {path}: " + "; ".join(problems))
    for candidate in [path, *_numbered(path, "checkpoint")]:
        if is_saved(candidate):
            return candidate
    raise CheckpointError(
        f"no checkpoint in {path}: looked for {MANIFEST} in it, in model/ and in step-*/model/, "
        f"and for what transformers saves of our models ({CONFIG} with the entry {OURS!r}, and "
        f"{WEIGHTS} or its shards) in it and in checkpoint-*/"
    )


def _numbered(path: Path, name: str) -> list[Path]:
    """`path/NAME-NUMBER`, the highest number first."""
    found = [p for p in path.glob(f"{name}-*") if re.fullmatch(rf"{name}-\d{{1,18}}", p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix(f"{name}-")), reverse=True)


def is_own(path: str | Path) -> bool:
    """Whether a path is a directory with a model of ours, whoever saved it."""
    return (Path(path) / MANIFEST).exists() or is_saved(Path(path))


def is_saved(directory: Path) -> bool:
    """Whether transformers saved a model of ours into a directory, and we wrote no manifest."""
    if not directory.is_dir() or (directory / MANIFEST).exists():
        return False
    if not any((directory / name).exists() for name in (WEIGHTS, INDEX)):
        return False
    if not (directory / CONFIG).exists():
        return False
    return {OURS, THEIRS} <= read_object(directory / CONFIG).keys()


def checkpoint_hash(path: str | Path) -> str:
    """The content hash that the manifest of a checkpoint or run directory states, or would."""
    directory = find_checkpoint(path)
    if is_saved(directory):
        return str(_made_manifest(directory)["content_hash"])
    return str(_read_manifest(directory)["content_hash"])


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
    manifest = read_object(path)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {manifest.get('format')!r}; known: {FORMAT}")
    for key, kind in (("content_hash", str), ("files", dict), ("metadata", dict)):
        if not isinstance(manifest.get(key), kind):
            raise CheckpointError(f"{path} has no entry {key!r}, or not of type {kind.__name__}")
    plain_names(manifest["files"], str(path))
    for name in {CONFIG, WEIGHTS, *manifest["files"]}:
        entry = manifest["files"].get(name)
        if not isinstance(entry, dict) or not {"size", "sha256"} <= entry.keys():
            raise CheckpointError(f"{path} does not state size and sha256 of {name}")
    return manifest


def verified_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint directory whose files are the ones that it states; made of what
    is there for a directory that transformers saved.

    Raises:
        CheckpointError: naming the file that was altered, or what the manifest lacks.
    """
    if is_saved(directory):
        return _made_manifest(directory)
    manifest = _read_manifest(directory)
    for name, entry in manifest["files"].items():
        check_regular(directory / name)
        if file_sha256(directory / name) != entry["sha256"]:
            raise CheckpointError(
                f"{directory / name} was altered: its sha256 is not the manifest's"
            )
    if content_hash(manifest["files"]) != manifest["content_hash"]:
        raise CheckpointError(f"{directory / MANIFEST} states a wrong content hash")
    return manifest


def _made_manifest(directory: Path) -> dict[str, Any]:
    weights = {file.name for file in find_weights(directory).files.values()}
    names = {*HASHED, FAST_FILE, *weights} - ({WEIGHTS} - weights)
    files = {}
    for path in sorted(directory / name for name in names):
        if path.exists():
            files[path.name] = {"size": check_regular(path), "sha256": file_sha256(path)}
    return {
        "format": FORMAT,
        "content_hash": content_hash(files, shards=sorted(weights - {WEIGHTS})),
        "files": files,
        "metadata": {},
    }


def content_hash(files: Mapping[str, Mapping[str, Any]], shards: Sequence[str] = ()) -> str:
    """The sha256, in hexadecimal, of those of the files that decide the output."""
    # tokenizer.json decides the tokens only where there are no ranks to make it from.
    names = HASHED if RANKS_FILE in files else (*HASHED, FAST_FILE)
    names = (*names, *shards)
    lines = [f"{name} {files[name]['sha256']}\n" for name in names if name in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
