"""Bits per byte as a plan: one sample a window of text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evals.tasks.bits_per_byte import Window, cut_windows, window_nats
from evals.tasks.plan import Row, Runner, fingerprint, tokenizer_of
from mhc_model.engine import Engine
from mhc_model.gates import GateValues, expand_gate_rows

# Batches between two writes of samples.jsonl: several, so that windows of one length meet.
BATCHES_AT_ONCE = 8


@dataclass(frozen=True)
class TextPlan:
    """Texts cut into windows for a given model; see `evals.items.Plan`.

    Samples hold the window's `nats`, `bytes` and number of `tokens`.
    """

    task: str
    engine: Engine
    windows: list[Window]
    rows: Tensor | None
    facts: dict[str, Any]

    @property
    def ids(self) -> list[str]:
        """The samples' ids, in order: text and window in it, both from 0."""
        ids: list[str] = []
        text, number = -1, 0
        for window in self.windows:
            text, number = window.text, number + 1 if window.text == text else 0
            ids.append(f"text-{text:05d}-{number:05d}")
        return ids

    def run(self, runner: Runner | None = None, done: Collection[str] = ()) -> Iterator[Row]:
        """Yields the samples that are not done; always on the plan's own engine's model."""
        batch = self.engine.max_batch
        pairs = zip(self.ids, self.windows, strict=True)
        todo = [(identity, window) for identity, window in pairs if identity not in done]
        for start in range(0, len(todo), BATCHES_AT_ONCE * batch):
            part = todo[start : start + BATCHES_AT_ONCE * batch]
            windows = [window for _, window in part]
            model = self.engine.model
            nats = window_nats(model, tokenizer_of(self.engine), windows, self.rows, batch)
            for (identity, window), value in zip(part, nats, strict=True):
                yield {
                    "id": identity,
                    "nats": value,
                    "bytes": window.bytes,
                    "tokens": len(window.tokens),
                }

    @staticmethod
    def summarise(samples: Sequence[Row]) -> dict[str, Any]:
        """Scores of all samples."""
        nats = math.fsum(sample["nats"] for sample in samples)
        return {
            "bits_per_byte": nats / math.log(2.0) / sum(sample["bytes"] for sample in samples),
            "nats_per_token": nats / sum(sample["tokens"] for sample in samples),
            "windows": len(samples),
        }


def text_plan(
    task: str, engine: Engine, texts: Sequence[str], gates: GateValues | None, source: str
) -> TextPlan:
    """Bits per byte of these texts.

    Args:
        task: its name in the results.
        engine: whose model and tokenizer are used.
        texts: documents.
        gates: None (learned), whatever `expand_gates` takes (the same for all), or a (n_texts, 2L)
            tensor, one row a text.
        source: where the texts come from, in words.

    Raises:
        DataError: if the texts hold nothing.
        GateError: if the gates do not fit the texts or the model.
        EngineError: if the engine has no tokenizer.
    """
    windows = cut_windows(engine.model, tokenizer_of(engine), texts)
    rows = expand_gate_rows(gates, len(texts), engine.model.config)
    facts = {
        "source": source,
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "texts_sha256": fingerprint([texts]),
    }
    return TextPlan(task, engine, windows, rows, facts)
