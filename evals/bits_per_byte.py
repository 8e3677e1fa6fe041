"""Bits per byte: how well a model predicts text, whatever its vocabulary.

Axes: b window, t token, c channel, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.gate_rows import gate_rows
from mhc_model.decoder import Decoder
from mhc_model.errors import DataError
from mhc_model.gates import GateValues
from mhc_model.tokenizer import Tokenizer

# Positions whose logits exist at once: with 50,257 tokens these are 200 MB in float32.
LOGIT_POSITIONS = 1024


class Window(NamedTuple):
    """Up to one context of consecutive tokens of one text."""

    text: int
    tokens: list[int]


@torch.inference_mode()
def bits_per_byte(
    model: Decoder,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    gates: GateValues | None = None,
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
        gates: None (learned), whatever `expand_gates` takes, or (n_texts, 2L), one row a text.
        batch_size: windows at once.
        context: tokens of a window; None takes the model's whole context.

    Raises:
        DataError: if the texts hold nothing, or batch_size is below 1.
        GateError: if the gates do not fit.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")
    encoded = [tokenizer.encode(text) for text in texts]
    rows = gate_rows(gates, len(encoded), model.config)
    lengths = tokenizer.token_byte_lengths()
    size = sum(int(lengths[tokens].sum()) for tokens in encoded if tokens)
    if size == 0:
        raise DataError(
            "bits per byte needs text, and there is none: give a file that is not empty"
        )
    # Windows of one length side by side waste no padding.
    context = model.config.max_seq_len if context is None else context
    windows = sorted(_windows(encoded, context), key=lambda w: -len(w.tokens))
    nats = 0.0
    training = model.training
    model.eval()
    try:
        for start in range(0, len(windows), batch_size):
            batch = windows[start : start + batch_size]
            own = None if rows is None else rows[[window.text for window in batch]]
            nats += _negative_log_likelihood(model, tokenizer.start_id, batch, own)
    finally:
        model.train(training)
    return nats / math.log(2.0) / size


def _windows(encoded: list[list[int]], context: int) -> list[Window]:
    return [
        Window(text, tokens[start : start + context])
        for text, tokens in enumerate(encoded)
        for start in range(0, len(tokens), context)
    ]


def _negative_log_likelihood(
    model: Decoder, start_id: int, windows: list[Window], gates: Tensor | None
) -> float:
    """Summed over all tokens of the windows, in nats.

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
    return sum(
        F.cross_entropy(model.logits(part), goal, reduction="sum").double().item()
        for part, goal in zip(
            positions.split(LOGIT_POSITIONS), wanted.split(LOGIT_POSITIONS), strict=True
        )
    )
