"""The training loss of a batch: cross-entropy, with random gates on a share of the sequences.

Axes: b batch, t token, c channel, v vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mhc_model.decoder import Decoder

# Separates the random numbers of the gates from those of the data order, which have the same seed.
_GATE_STREAM = 1


class GateNoise(NamedTuple):
    """Random gates of some sequences."""

    used: Tensor  # (b, 1) bool: the sequence has random gates
    gates: Tensor  # (b, 2L) float32, uniform in [0, 1)
    # () float32 in [0, 1]: 0 gives the learned gates, 1 the random ones. A tensor: a compiled step
    # would be compiled again for every new number.
    width: Tensor

    def part(self, start: int, stop: int) -> GateNoise:
        """Of the sequences from start to stop."""
        return GateNoise(self.used[start:stop], self.gates[start:stop], self.width)

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
            noise: random gates; None uses the learned gates of an mHC model throughout.

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
