"""Reading prompts: which part of which prompts goes into one pass, and how likely their tokens are.

Axes: r row, t token, c channel, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mhc_model.decoder import Decoder
from mhc_model.engine.batch import Wanted, score
from mhc_model.engine.row import Row

# A pass may spend this much of its size on padding.
MOST_PADDING = 0.25
# Positions whose logits exist at once: with 50,257 tokens these are 200 MB in float32.
LOGIT_POSITIONS = 1024


def choose_chunks(reading: Sequence[Row], budget: int) -> tuple[list[Row], list[int]]:
    """The rows of the next pass and how many tokens each reads: the first one, and its likes.

    Args:
        reading: rows whose prompt is not read to its end, the longest waiting first.
        budget: most tokens of the pass, padding included.
    """

    def left(row: Row) -> int:
        return len(row.prompt) - row.filled

    first = reading[0]
    rows, counts = [first], [min(left(first), budget)]
    for row in sorted(reading[1:], key=lambda row: abs(left(row) - left(first))):
        tokens = [*counts, min(left(row), budget)]
        padded = max(tokens) * len(tokens)
        if padded <= budget and padded * (1.0 - MOST_PADDING) <= sum(tokens):
            rows.append(row)
            counts = tokens
    return rows, counts


def score_prompts(
    model: Decoder, hidden: Tensor, rows: Sequence[Row], counts: Sequence[int]
) -> None:
    """Gives rows the log-probabilities of their prompt's tokens that this pass predicts.

    Args:
        model: makes logits of hidden.
        hidden: (r, t, c), the output for tokens `filled .. filled + count` of each row's prompt.
        rows: as they were before the pass.
        counts: tokens of each row in the pass.
    """
    places: list[tuple[int, int]] = []  # row and token of the pass that predict
    targets: list[int] = []
    owners: list[Row] = []
    for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
        scored = row.request.sampling.prompt_logprobs_from
        if scored is None:
            continue
        first = max(scored, row.filled + 1)
        stop = min(row.filled + count + 1, len(row.prompt))
        for position in range(first, stop):
            places.append((place, position - 1 - row.filled))
            targets.append(row.prompt[position])
            owners.append(row)
    if not places:
        return
    wanted = Wanted(False, False, True, max(row.request.sampling.top_logprobs for row in owners))
    ranked = any(row.request.sampling.prompt_ranks for row in owners)
    where = torch.tensor(places, device=hidden.device)
    tokens = torch.tensor(targets, device=hidden.device)
    for start in range(0, len(places), LOGIT_POSITIONS):
        part = slice(start, start + LOGIT_POSITIONS)
        logits = model.logits(hidden[where[part, 0], where[part, 1]])
        logprobs, top = score(logits, tokens[part], wanted)
        assert logprobs is not None
        likeliest = [[] for _ in targets[part]] if top is None else _pairs(*top)
        for row, value, pairs in zip(owners[part], logprobs.tolist(), likeliest, strict=True):
            row.prompt_logprobs.append(value)
            row.prompt_top.append(tuple(pairs[: row.request.sampling.top_logprobs]))
        if ranked:
            chosen = logits.gather(-1, tokens[part, None])
            ranks = (logits >= chosen).sum(dim=-1).tolist()
            for row, rank in zip(owners[part], ranks, strict=True):
                row.prompt_ranks.append(rank)


def _pairs(logprobs: Tensor, ids: Tensor) -> list[list[tuple[int, float]]]:
    return [
        list(zip(*row, strict=True)) for row in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]
