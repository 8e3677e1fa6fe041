"""The training loss of a batch: cross-entropy, under the gates that each sequence has.

Sequences of rows with a behaviour or with gates run under those; a share of the others has random
gates, the rest the learned ones. Every draw is a function of (seed, step, sequence).

Axes: b batch, t token, c channel, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mhc_model.config import ModelConfig
from mhc_model.decoder import Decoder
from mhc_model.gates import expand_gates
from train.data import NO_GROUP, RowGroup, check_groups

# Separate the random numbers of the gates from those of the data order, which have the same seed,
# and from each other.
_GATE_STREAM, _GROUP_STREAM = 1, 2


class GateNoise(NamedTuple):
    """Gates of some sequences that are not the learned ones."""

    used: Tensor  # (b, 1) bool: the sequence has them
    gates: Tensor  # (b, 2L) float32, in [0, 1]
    # () or (b, 1) float32 in [0, 1]: 0 gives the learned gates, 1 these. A tensor: a compiled step
    # would be compiled again for every new number.
    width: Tensor

    def part(self, start: int, stop: int) -> GateNoise:
        """Of the sequences from start to stop."""
        width = self.width[start:stop] if self.width.ndim else self.width
        return GateNoise(self.used[start:stop], self.gates[start:stop], width)

    def mixed_with(self, learned: Tensor) -> Tensor:
        """(b, 2L) gates of all sequences; the learned ones, (2L,), keep their gradient only where
        they are used as they are."""
        random = torch.lerp(learned.detach(), self.gates, self.width)
        return torch.where(self.used, random, learned)


def noise_width(step: int, steps: int, ramp: float) -> float:
    """The curriculum: from the learned gates to all of [0, 1] over a share `ramp` of the steps."""
    return 1.0 if ramp * steps <= 0.0 else min(1.0, step / (ramp * steps))


def draw_gate_noise(
    seed: int, step: int, batch: int, n_gates: int, share: float, width: float = 1.0
) -> GateNoise:
    """Gate noise of all sequences of a step, the same on every worker.

    At full width the noise covers all of [0, 1]: whatever gates a caller or a policy sends later,
    the model has been trained with their like.
    """
    generator = np.random.default_rng([seed, step, _GATE_STREAM])
    used = generator.random((batch, 1)) < share
    gates = generator.random((batch, n_gates), dtype=np.float32)
    return GateNoise(torch.from_numpy(used), torch.from_numpy(gates), torch.tensor(width))


class GroupGates:
    """The gates of rows that say something of them.

    Attributes:
        names: of each group: its behaviour; None where the rows give numbers.
        representative: (groups, 2L) float32, of the behaviours or as given.
    """

    def __init__(self, groups: Sequence[RowGroup], model: ModelConfig) -> None:
        """Expands ranges to all sublayers.

        Raises:
            DataError: if the model does not know a behaviour, or numbers do not fit it; it names
                file and line.
        """
        check_groups(groups, model)
        self._n_gates = model.n_gates
        self.names = tuple(group if isinstance(group, str) else None for group, _, _ in groups)
        representative, low, high, sources = [], [], [], []
        for group, _, _ in groups:
            if isinstance(group, str):
                behaviour = model.behaviours[group]
                ranges, values = behaviour.ranges, behaviour.representative
            else:
                ranges, values = tuple((gate, gate) for gate in group), group
            ends = [expand_gates(end, model.n_layers) for end in zip(*ranges, strict=True)]
            low.append(ends[0])
            high.append(ends[1])
            representative.append(expand_gates(values, model.n_layers))
            # One number for all sublayers, for those of a layer, or for each: which one it is.
            each = model.n_gates // len(ranges)
            sources.append(torch.arange(len(ranges)).repeat_interleave(each))
        self.representative = torch.stack(representative)
        self._low, self._high = torch.stack(low), torch.stack(high)
        self._sources = torch.stack(sources)

    def name(self, group: int) -> str | None:
        """The behaviour of a group; None where the rows give numbers, and of -1."""
        return None if group == NO_GROUP else self.names[group]

    def draw(self, seed: int, step: int, groups: Tensor) -> Tensor:
        """Gates of all sequences of a step, the same on every worker.

        Args:
            seed: of the run.
            step: 1, 2, ...
            groups: (b,) int64, -1 of none.

        Returns:
            (b, 2L) float32, uniform in the range of each group; anything where there is none.
        """
        generator = np.random.default_rng([seed, step, _GROUP_STREAM])
        numbers = generator.random((len(groups), self._n_gates), dtype=np.float32)
        own = groups.clamp(min=0)
        low, high = self._low[own], self._high[own]
        drawn = torch.from_numpy(numbers).gather(1, self._sources[own])
        return torch.minimum(low + (high - low) * drawn, high)  # rounding could pass the end

    def over(self, noise: GateNoise | None, gates: Tensor, groups: Tensor) -> GateNoise:
        """The gates of these rows, and for the others the noise that they have without them.

        Args:
            noise: of all sequences of a step; None has none.
            gates: (b, 2L), of `draw`.
            groups: (b,) int64, -1 of none.
        """
        grouped = (groups != NO_GROUP)[:, None]
        if noise is None:
            return GateNoise(grouped, gates, torch.ones(len(groups), 1))
        return GateNoise(
            grouped | noise.used,
            torch.where(grouped, gates, noise.gates),
            torch.where(grouped, torch.ones(()), noise.width),
        )


class Objective(nn.Module):
    """Decoder and loss in one module: what DDP wraps.

    The learned gates are read inside `forward`, so that DDP averages their gradient as any other.
    """

    def __init__(self, decoder: Decoder, loss_chunk: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.loss_chunk = loss_chunk

    def forward(self, inputs: Tensor, targets: Tensor, noise: GateNoise | None = None) -> Tensor:
        """Mean cross-entropy in nats per token.

        Args:
            inputs: (b, t) int64 token ids.
            targets: (b, t) int64, the token after each input; -1 counts as a loss of 0.
            noise: gates of some sequences; None uses the learned ones of an mHC model throughout.

        Returns:
            () float32.
        """
        gates = None
        if noise is not None:
            gates = noise.mixed_with(self.decoder.learned_gates())
        hidden = self.decoder.hidden(inputs, gates).flatten(0, 1)  # (b t, c)
        wanted = targets.flatten()
        if len(wanted) <= self.loss_chunk:
            return self._summed_loss(hidden, wanted) / len(wanted)
        parts = zip(hidden.split(self.loss_chunk), wanted.split(self.loss_chunk), strict=True)
        # Without recomputing them, the logits of all chunks would wait for the backward pass.
        losses = [checkpoint(self._summed_loss, *part, use_reentrant=False) for part in parts]
        return torch.stack(losses).sum() / len(wanted)

    def _summed_loss(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        logits = self.decoder.logits(hidden)
        return F.cross_entropy(logits, wanted, ignore_index=-1, reduction="sum")
