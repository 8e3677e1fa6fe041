"""vLLM's engines for tests: they take seconds to start, so tests share them, one after another."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

HAS_VLLM = importlib.util.find_spec("vllm") is not None
REASON = "vLLM is not installed; `make vllm-test` makes an environment that has it"
NEEDS_VLLM = [pytest.mark.vllm, pytest.mark.skipif(not HAS_VLLM, reason=REASON)]
ENGINES = ["torch", pytest.param("vllm", marks=NEEDS_VLLM)]

Key = tuple[Path, tuple[tuple[str, Any], ...]]


class VLLMEngines:
    """Engines by checkpoint and options; a test that asks twice gets two."""

    def __init__(self) -> None:
        self._idle: dict[Key, list[Any]] = {}
        self._taken: list[tuple[Key, Any]] = []

    def take(self, checkpoint: Path, **options: Any) -> Any:
        """A `VLLMEngine` that no other has until `release`; nothing in its prefix cache."""
        from mhc_model.vllm_plugin.engine import VLLMEngine

        options.setdefault("prefix_cache_bytes", 1 << 22)
        key = (checkpoint, tuple(sorted(options.items())))
        idle = self._idle.get(key)
        engine = idle.pop() if idle else VLLMEngine.from_checkpoint(checkpoint, **options)
        self._taken.append((key, engine))
        return engine

    def release(self) -> None:
        """Ends what the engines still do and keeps them for the next test."""
        if not self._taken:
            return
        from mhc_model.vllm_plugin.engine import VLLMEngine

        taken, self._taken = self._taken, []
        for key, engine in taken:
            inner = engine._engine
            inner.abort_request(list(inner.output_processor.request_states), internal=True)
            engine.clear_prefix_cache()
            limits = engine.tokenizer, engine.checkpoint_hash, engine.max_seq_len
            self._idle.setdefault(key, []).append(VLLMEngine(inner, *limits))

    def discard(self, engine: Any) -> None:
        """Forgets an engine that a test broke; any other is none of this."""
        self._taken = [(key, taken) for key, taken in self._taken if taken is not engine]


vllm_engines = VLLMEngines()
