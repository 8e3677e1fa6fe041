"""The Triton operations on the streams: whether they run here, and how to go without them."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch


def stream_library() -> ModuleType | None:
    """The Triton operations on the streams, where the package has them and can load them."""
    try:
        return importlib.import_module("mhc_model.kernels.library")
    except ImportError:
        return None


def triton_available(device: torch.device) -> bool:
    library = stream_library()
    return library is not None and device.type == "cuda" and bool(library.is_available(device))


@contextlib.contextmanager
def eager_streams() -> Iterator[None]:
    """Moves the streams with torch operations, also where there are kernels."""
    library = stream_library()
    if library is None:
        yield
        return
    before = library.is_available
    library.is_available = lambda *_: False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        library.is_available = before  # type: ignore[attr-defined]


def with_eager_streams(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        with eager_streams():
            return run(*arguments)

    return wrapped
