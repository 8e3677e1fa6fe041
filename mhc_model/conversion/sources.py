"""Where models to convert come from: a directory, a name on the Hugging Face hub, a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mhc_model.errors import CheckpointError
from mhc_model.tokenizer import FAST_FILE, FastTokenizer, tokenizer_files

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
HUB_FILES = (CONFIG, "*.safetensors", INDEX, "generation_config.json", "tokenizer*.json", "*.jinja")


@dataclass(frozen=True)
class Source:
    """A model as it was found, with transformers' names.

    Attributes:
        name: what the user gave.
        config_file: what holds the configuration, for errors.
        entries: of config.json.
        tensors: key -> tensor.
        files: key -> file that holds it.
        tokenizer: None if there is none.
    """

    name: str
    config_file: Path
    entries: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    files: Mapping[str, Path] = field(repr=False)
    tokenizer: FastTokenizer | None = None

    def file_of(self, key: str) -> str:
        """The file with a tensor, or the file that should have it."""
        own = set(self.files.values())
        return str(self.files.get(key, own.pop() if len(own) == 1 else self.config_file.parent))


def read_source(name: str | Path) -> Source:
    """Reads a model.

    Args:
        name: a directory with config.json and safetensors files, or with one GGUF file; a GGUF
            file; or a hub name such as Qwen/Qwen3-0.6B.

    Raises:
        CheckpointError: naming the file, and the key where there is one.
    """
    path = Path(name)
    if path.is_file():
        return _read_gguf(path)
    if path.is_dir():
        return _read_directory(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return _read_directory(_download(str(name)), str(name))
    raise CheckpointError(
        f"{name} is neither a directory, a GGUF file nor a hub name (organisation/model)"
    )


def _read_directory(directory: Path, name: str | None = None) -> Source:
    config_file = directory / CONFIG
    if not config_file.exists():
        found = sorted(directory.glob("*.gguf"))
        if len(found) == 1:
            return _read_gguf(found[0])
        raise CheckpointError(
            f"{directory} has no {CONFIG}"
            + (f" and {len(found)} GGUF files; name one of them" if found else "")
        )
    entries = read_json(config_file)
    tensors, files = _read_weights(directory)
    return Source(
        name=name or str(directory),
        config_file=config_file,
        entries=entries,
        tensors=tensors,
        files=files,
        tokenizer=_read_tokenizer(directory, entries),
    )


def _read_tokenizer(directory: Path, entries: Mapping[str, Any]) -> FastTokenizer | None:
    files = tokenizer_files(directory)
    if FAST_FILE not in files:
        return None
    generation = directory / "generation_config.json"
    ends = read_json(generation).get("eos_token_id") if generation.exists() else None
    ends = entries.get("eos_token_id") if ends is None else ends
    ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    size = entries.get("vocab_size")
    return FastTokenizer.from_files(files, size, ids, str(directory))


def _read_weights(directory: Path) -> tuple[dict[str, Tensor], dict[str, Path]]:
    index_file, single = directory / INDEX, directory / WEIGHTS
    if not index_file.exists():
        if not single.exists():
            raise CheckpointError(
                f"{directory} has neither {WEIGHTS} nor {INDEX}; other formats are not read: save "
                f"the model with safetensors"
            )
        tensors = _load(single)
        return tensors, dict.fromkeys(tensors, single)
    index = read_json(index_file).get("weight_map")
    if not isinstance(index, dict):
        raise CheckpointError(f"{index_file} has no object 'weight_map'")
    tensors, files = {}, {}
    for shard in sorted(set(index.values())):
        file = directory / str(shard)
        for key, tensor in _load(file).items():
            tensors[key], files[key] = tensor, file
    for key, shard in index.items():
        if files.get(key) != directory / str(shard):
            raise CheckpointError(
                f"{directory / str(shard)} lacks the tensor {key!r} that {index_file.name} lists"
            )
    return tensors, files


def _load(file: Path) -> dict[str, Tensor]:
    if not file.exists():
        raise CheckpointError(f"{file} does not exist")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: if it cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{name} is no directory here, and it could not be had from the Hugging Face hub: "
            f"{error}"
        ) from None


def _read_gguf(path: Path) -> Source:
    from mhc_model.conversion.gguf_files import read_gguf

    model = read_gguf(path)
    return Source(
        name=str(path),
        config_file=path,
        entries=model.entries,
        tensors=model.tensors,
        files=dict.fromkeys(model.tensors, path),
        tokenizer=model.tokenizer,
    )
