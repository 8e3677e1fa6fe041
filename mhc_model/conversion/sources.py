"""Where models to convert come from: a directory, a name on the Hugging Face hub, a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mhc_model.checkpoint import INDEX, WEIGHTS, find_weights
from mhc_model.conversion.families import family_of
from mhc_model.conversion.state_dicts import check_stored
from mhc_model.errors import CheckpointError
from mhc_model.files import read_object, token_ids
from mhc_model.tokenizer import FAST_FILE, FastTokenizer, tokenizer_files

CONFIG = "config.json"
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
    entries = read_object(config_file)
    family = family_of(entries, str(config_file))
    config = family.model_config(entries, str(config_file))
    if entries.get("transformers_weights") not in (None, WEIGHTS):
        raise CheckpointError(
            f"{config_file}: transformers_weights is {entries['transformers_weights']!r:.100}; "
            f"supported: {WEIGHTS!r}"
        )
    weights = find_weights(directory)
    source = Source(name or str(directory), config_file, entries, {}, weights.files)
    check_stored(family, config, weights.stored, source.file_of)
    tokenizer = _read_tokenizer(directory, entries)
    return replace(source, tensors=weights.load(), tokenizer=tokenizer)


def _read_tokenizer(directory: Path, entries: Mapping[str, Any]) -> FastTokenizer | None:
    files = tokenizer_files(directory)
    if FAST_FILE not in files:
        return None
    generation = directory / "generation_config.json"
    ends = read_object(generation).get("eos_token_id") if generation.exists() else None
    named = directory / CONFIG if ends is None else generation
    ends = entries.get("eos_token_id") if ends is None else ends
    ids = token_ids(ends, f"{named}: eos_token_id")
    return FastTokenizer.from_files(files, entries.get("vocab_size"), ids, str(directory))


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
