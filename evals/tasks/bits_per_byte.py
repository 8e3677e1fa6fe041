"""Bits per byte: how well a model predicts text, whatever its vocabulary; and as a plan.

`bits_per_byte` is the figure of some texts. `text_plan` gives it with one sample a window of text.

Axes: b window, t token, c channel, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.tasks.plan import (
    Runner,
    Sample,
    fingerprint,
    gate_rows,
    scoring_gates,
    tokenizer_of,
)
from mhc_model.decoder import Decoder
from mhc_model.engine import Engine
from mhc_model.errors import DataError
from mhc_model.gates import RequestGates
from mhc_model.tokenizer import Tokenizer

# Positions whose logits exist at once: with 50,257 tokens these are 200 MB in float32.
LOGIT_POSITIONS = 1024
# Batches between two writes of samples.jsonl: several, so that windows of one length meet.
BATCHES_AT_ONCE = 8


class Window(NamedTuple):
    """Up to one context of consecutive tokens of one text."""

    text: int
    tokens: list[int]
    bytes: int


def bits_per_byte(
    model: Decoder,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    gates: RequestGates = None,
    batch_size: int = 16,
    context: int | None = None,
) -> float:
    """Bits that the model needs for each UTF-8 byte of the texts.

    Every token of a text is predicted once, from the tokens before it in its window: a text is cut
    into windows of `context` tokens, each after the document separator. So a long text's
    figure is a little higher than with a sliding window, and it is the same for every batch size.

    Args:
        model: runs on its own device, in eval mode for the time of the call.
        tokenizer: the model's; special tokens have no bytes.
        texts: documents.
        gates: what `resolve_gates` takes, or (n_texts, 2L), one row a text; of gates for prompt and
            answer the prompt's.
        batch_size: windows at once.
        context: tokens of a window; None takes the model's whole context.

    Raises:
        DataError: if the texts hold nothing, or batch_size is below 1.
        GateError: if the gates do not fit.
    """
    texts = list(texts)
    windows = cut_windows(model, tokenizer, texts, context)
    rows, _ = scoring_gates(gate_rows(gates, len(texts), model))
    nats = window_nats(model, tokenizer, windows, rows, batch_size)
    return sum(nats) / math.log(2.0) / sum(window.bytes for window in windows)


def cut_windows(
    model: Decoder, tokenizer: Tokenizer, texts: Iterable[str], context: int | None = None
) -> list[Window]:
    """All windows of the texts, in order; `context` tokens each, None is the model's context.

    Raises:
        DataError: if the texts hold nothing.
    """
    context = model.config.max_seq_len if context is None else context
    lengths = tokenizer.token_byte_lengths()
    windows = []
    for text, content in enumerate(texts):
        tokens = tokenizer.encode(content)
        for start in range(0, len(tokens), context):
            part = tokens[start : start + context]
            windows.append(Window(text, part, int(lengths[part].sum())))
    if sum(window.bytes for window in windows) == 0:
        raise DataError(
            "bits per byte needs text, and there is none: give a file that is not empty"
        )
    return windows


@torch.inference_mode()
def window_nats(
    model: Decoder,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    rows: Tensor | None = None,
    batch_size: int = 16,
) -> list[float]:
    """Negative log-likelihood of each window, in nats.

    Args:
        model: runs on its own device, in eval mode for the time of the call.
        tokenizer: the model's.
        windows: of `cut_windows`.
        rows: (n_texts, 2L) gates, one row a text, or None for the learned ones.
        batch_size: windows at once.

    Raises:
        DataError: if batch_size is below 1.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")
    # Windows of one length side by side waste no padding.
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].tokens))
    nats = [0.0] * len(windows)
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            batch = [windows[position] for position in positions]
            own = None if rows is None else rows[[window.text for window in batch]]
            found = _negative_log_likelihoods(model, tokenizer.start_id, batch, own)
            for position, value in zip(positions, found, strict=True):
                nats[position] = value
    finally:
        model.train(training)
    return nats


def _negative_log_likelihoods(
    model: Decoder, start_id: int, windows: Sequence[Window], gates: Tensor | None
) -> list[float]:
    """Summed over the tokens of each window, in nats.

    Input t of a window is token t - 1, the separator first; padding is on the right, where causal
    attention keeps it out of every real position.
    """
    device = model.embedding.weight.device
    width = max(len(window.tokens) for window in windows)
    targets = torch.full((len(windows), width), -1)
    for row, window in enumerate(windows):
        targets[row, : len(window.tokens)] = torch.tensor(window.tokens)
    inputs = torch.full_like(targets, start_id)
    inputs[:, 1:] = torch.where(targets[:, :-1] < 0, start_id, targets[:, :-1])
    hidden = model.hidden(inputs.to(device), gates)
    real = (targets >= 0).to(device)
    positions, wanted = hidden[real], targets.to(device)[real]  # (p, c), (p,)
    losses = [
        F.cross_entropy(model.logits(part), goal, reduction="none").double()
        for part, goal in zip(
            positions.split(LOGIT_POSITIONS), wanted.split(LOGIT_POSITIONS), strict=True
        )
    ]
    owners = real.nonzero()[:, 0]
    sums = torch.zeros(len(windows), dtype=torch.float64, device=device)
    return sums.index_add_(0, owners, torch.cat(losses)).tolist()


@dataclass(frozen=True)
class TextPlan:
    """Texts cut into windows for a given model; it has the face of a `Plan`.

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

    def run(self, runner: Runner | None = None, done: Collection[str] = ()) -> Iterator[Sample]:
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
    def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
        """Scores of all samples."""
        nats = math.fsum(sample["nats"] for sample in samples)
        return {
            "bits_per_byte": nats / math.log(2.0) / sum(sample["bytes"] for sample in samples),
            "nats_per_token": nats / sum(sample["tokens"] for sample in samples),
            "windows": len(samples),
        }


def text_plan(
    task: str, engine: Engine, texts: Sequence[str], gates: RequestGates, source: str
) -> TextPlan:
    """Bits per byte of these texts.

    Args:
        task: its name in the results.
        engine: whose model and tokenizer are used.
        texts: documents.
        gates: what `resolve_gates` takes (the same for all), or a (n_texts, 2L) tensor, one row a
            text, or a (n_texts, 2, 2L) one of prompt and answer: text is only scored, so the
            prompt's count.
        source: where the texts come from, in words.

    Raises:
        DataError: if the texts hold nothing.
        GateError: if the gates do not fit the texts or the model.
        EngineError: if the engine has no tokenizer.
    """
    windows = cut_windows(engine.model, tokenizer_of(engine), texts)
    rows, about_gates = scoring_gates(gate_rows(gates, len(texts), engine.model))
    facts = {
        "source": source,
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "texts_sha256": fingerprint([texts]),
        **about_gates,
    }
    return TextPlan(task, engine, windows, rows, facts)
