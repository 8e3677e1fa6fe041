"""Files that others wrote, read only as far as they are what they should be.

A path may be a pipe that never ends, a JSON file may nest 200,000 deep, and a configuration may ask
for terabytes. What is looked at here costs little whatever a file says: its kind and size come
first, and the shapes of weights come from the head of their file.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mhc_model.errors import CheckpointError

T = TypeVar("T")

MAX_JSON = 8 * 2**20  # bytes; empty lists take twenty times their text
MAX_TOKENIZER = 64 * 2**20  # bytes of tokenizer.json and the like: the largest known has 35 million
MAX_HEAD = 32 * 2**20  # bytes of the head of a safetensors file: about 200,000 tensors
FLOATS = ("F32", "BF16", "F16")  # dtypes of weights, by safetensors' names


@dataclass(frozen=True)
class Stored:
    """What the head of a file says of a tensor: its shape, and its dtype by safetensors' name."""

    shape: tuple[int, ...]
    dtype: str


def check_regular(path: Path) -> int:
    """The size of a regular file, or of what a link to one points to.

    Raises:
        CheckpointError: if there is none, or it is a pipe, a device, a directory.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is no regular file; replace it by one")
    return found.st_size


def read_file(path: Path, limit: int = MAX_JSON) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        CheckpointError: if it is something else, or larger.
    """
    check_regular(path)
    try:
        # Another process may swap the file for a pipe: opening must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{path} is no regular file; replace it by one")
            content = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from None
    if len(content) > limit:
        raise CheckpointError(f"{path} has more than {limit} bytes; at most that many are read")
    return content


def parse_object(content: bytes, source: str) -> dict[str, Any]:
    """The object that a JSON text is.

    Args:
        content: UTF-8, a byte-order mark allowed.
        source: named in errors.

    Raises:
        CheckpointError: if it is no JSON, nests too deep, or is something else than an object.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise CheckpointError(f"{source} cannot be read: it nests too deep") from None
    except ValueError as error:
        raise CheckpointError(f"{source} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} holds {type(value).__name__}, expected an object")
    return value


def read_object(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file; raises as `read_file` and `parse_object`."""
    return parse_object(read_file(path, limit), str(path))


def token_ids(value: Any, source: str) -> list[int]:
    """Token ids as files give them: none, a number, or a list of numbers.

    Raises:
        CheckpointError: for anything else.
    """
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in ids):
        raise CheckpointError(
            f"{source} is {value!r:.100}; it must be a token id, or a list of them"
        )
    return ids


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Name -> shape and dtype of a safetensors file, without its tensors.

    Raises:
        CheckpointError: if it is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    size = check_regular(path)
    with path.open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
    if head > min(size, MAX_HEAD):
        raise CheckpointError(
            f"{path} is not a readable safetensors file: its head would have {head} bytes, the "
            f"file has {size}, and at most {MAX_HEAD} are read"
        )
    try:
        with safe_open(path, "pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            return {
                name: Stored(tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None


def without_panics(call: Callable[[], T], error: Callable[[str], Exception]) -> T:
    """What a call into a Rust library gives, where a fault of the library is an error of ours.

    A panic reaches Python as an exception that is no `Exception`: it would pass every handler and
    end the thread.
    """
    try:
        return call()
    except BaseException as fault:
        if type(fault).__name__ != "PanicException":
            raise
        raise error(f"the tokenizer's library failed: {fault}") from None


def plain_names(names: Iterable[Any], source: str) -> list[str]:
    """File names beside another file, each once and sorted.

    Raises:
        CheckpointError: for one that leads out of the directory.
    """
    found = set(names)
    for name in found:
        if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise CheckpointError(f"{source} names the file {name!r:.100}, which is no plain name")
    return sorted(found)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
