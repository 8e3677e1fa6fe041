"""The weights of a directory in safetensors: one file, or shards with their index.

What there is comes from the heads of the files, so shapes can be compared with a configuration
before anything is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mhc_model.errors import CheckpointError
from mhc_model.files import (
    FLOATS,
    Stored,
    check_regular,
    plain_names,
    read_object,
    stored_tensors,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Weights:
    """What is stored, and where.

    Attributes:
        files: tensor -> file that holds it.
        stored: tensor -> shape and dtype.
    """

    files: Mapping[str, Path]
    stored: Mapping[str, Stored]

    def load(self) -> dict[str, Tensor]:
        """All tensors, as they are stored.

        Raises:
            CheckpointError: naming the file that cannot be read.
        """
        tensors: dict[str, Tensor] = {}
        for file in sorted(set(self.files.values())):
            try:
                tensors |= load_file(file)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file} is not a readable safetensors file: {error}"
                ) from None
        return tensors


def find_weights(directory: Path) -> Weights:
    """The weights of a directory, by their heads.

    Raises:
        CheckpointError: if there are none, there are two, a shard is missing or lacks what the
            index lists, or a tensor holds no floating-point numbers.
    """
    files: dict[str, Path] = {}
    stored: dict[str, Stored] = {}
    for file in _files(directory):
        for key, found in stored_tensors(file).items():
            if key in files:
                raise CheckpointError(f"{file} and {files[key]} both have the tensor {key!r}")
            if found.dtype not in FLOATS:
                raise CheckpointError(
                    f"{file}: {key!r} is stored as {found.dtype}; supported: {', '.join(FLOATS)}"
                )
            files[key], stored[key] = file, found
    index = directory / INDEX
    for key, shard in _index(index).items() if index.exists() else ():
        if files.get(key) != directory / shard:
            raise CheckpointError(
                f"{directory / shard} lacks the tensor {key!r} that {index.name} lists"
            )
    return Weights(files, stored)


def _files(directory: Path) -> list[Path]:
    single, index = directory / WEIGHTS, directory / INDEX
    if (directory / ADAPTER).exists():
        raise CheckpointError(
            f"{directory} has {ADAPTER}: an adapter changes what the weights are; merge it into "
            f"them first (peft's merge_and_unload), or remove it"
        )
    if not index.exists():
        if not single.exists():
            raise CheckpointError(
                f"{directory} has neither {WEIGHTS} nor {INDEX}; other formats are not read: save "
                f"the model with safetensors"
            )
        return [single]
    shards = plain_names(_index(index).values(), str(index))
    if single.exists() and shards != [WEIGHTS]:
        raise CheckpointError(
            f"{directory} has {WEIGHTS}, and {INDEX} that names {len(shards)} other files: these "
            f"are two sets of weights; remove the one that is not meant"
        )
    for shard in shards:
        if not (directory / shard).exists():
            raise CheckpointError(f"{directory / shard} does not exist")
        check_regular(directory / shard)
    return [directory / shard for shard in shards]


def _index(file: Path) -> dict[str, str]:
    index = read_object(file).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{file} has no object 'weight_map'")
    return index
