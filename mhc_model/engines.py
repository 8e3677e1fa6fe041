"""The engines by name, for configurations: torch's, and vLLM where it is installed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhc_model.config import EngineKind
from mhc_model.errors import ConfigError

if TYPE_CHECKING:
    from mhc_model.engine import EngineBase


def load_engine(kind: EngineKind, checkpoint: str | Path, **options: Any) -> EngineBase:
    """An engine over a checkpoint or run directory.

    Args:
        kind: "torch" is `Engine`, "vllm" is `VLLMEngine`.
        checkpoint: see `load_checkpoint`.
        options: of `from_checkpoint`; both take the same.

    Raises:
        ConfigError: if vLLM is asked for and not installed, or cannot serve the model.
        CheckpointError, EngineError: as `from_checkpoint`.
    """
    check_engine(kind)
    if kind == "torch":
        from mhc_model.engine import Engine

        return Engine.from_checkpoint(checkpoint, **options)
    # Its lines about every start are of no use among a run's own.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from mhc_model.vllm_plugin.engine import VLLMEngine

    return VLLMEngine.from_checkpoint(checkpoint, **options)


def check_engine(kind: EngineKind) -> None:
    """Refuses an engine that cannot be had here, before anything is started for it.

    Raises:
        ConfigError: naming it and where it comes from.
    """
    if kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine is 'vllm', and vLLM is not installed; it wants an environment of its own "
            "(docs/vllm.md), or take engine 'torch'"
        )
