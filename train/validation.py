"""Held-out loss under learned and fixed gates, and how far the routing has moved.

Axes: b window, t token, n and m streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from evals.bits_per_byte import bits_per_byte
from mhc_model.connections import Coefficients, HyperConnection
from mhc_model.decoder import Decoder
from mhc_model.gates import GateValues
from mhc_model.tokenizer import Tokenizer
from train.process_group import ProcessGroup

# Gates that an mHC model is validated with, by the suffix of the metric.
VALIDATION_GATES: dict[str, GateValues | None] = {"": None, "_gate_0": 0.0, "_gate_1": 1.0}


class Validation:
    """The held-out documents, shared out over the workers."""

    def __init__(self, documents: Sequence[str], tokenizer: Tokenizer, group: ProcessGroup) -> None:
        """Keeps this worker's share, and the size of the whole.

        Args:
            documents: all held-out documents, the same on every worker.
            tokenizer: of the model.
            group: the workers.
        """
        self.tokenizer = tokenizer
        self.group = group
        self.own = documents[group.rank :: group.size]
        self.own_bytes = self._count_bytes(self.own)
        self.all_bytes = self._count_bytes(documents)
        self.all_tokens = sum(map(len, tokenizer.encode_batch(documents)))

    def evaluate(self, decoder: Decoder) -> dict[str, float | list[float]]:
        """Metrics of the whole held-out text; every worker calls it and gets the same.

        Returns:
            val_bpb (bits per byte) and val_loss (nats per token). For an mHC model also both with
            the suffixes _gate_0 and _gate_1, the learned `gates` (2L) and `h_res_drift`, the
            largest |H_res - H_res at init| over tokens and sublayers.
        """
        metrics: dict[str, float | list[float]] = {}
        plain = decoder.config.mhc is None
        with watch_drift(decoder) as drift:
            metrics |= self._losses(decoder, "", None)
        if plain:
            return metrics
        metrics["h_res_drift"] = self.group.maximum(float(drift.max()))
        metrics["gates"] = [round(gate, 6) for gate in decoder.learned_gates().tolist()]
        for suffix, gates in VALIDATION_GATES.items():
            if suffix:
                metrics |= self._losses(decoder, suffix, gates)
        return metrics

    def _losses(
        self, decoder: Decoder, suffix: str, gates: GateValues | None
    ) -> dict[str, float | list[float]]:
        bits = 0.0
        if self.own:  # there can be fewer documents than workers
            bits = self.own_bytes * bits_per_byte(decoder, self.tokenizer, self.own, gates)
        bits = self.group.total(bits)
        return {
            f"val_loss{suffix}": bits * math.log(2.0) / self.all_tokens,
            f"val_bpb{suffix}": bits / self.all_bytes,
        }

    def _count_bytes(self, documents: Sequence[str]) -> int:
        lengths = self.tokenizer.token_byte_lengths()
        rows = self.tokenizer.encode_batch(documents)
        return sum(int(lengths[row].sum()) for row in rows if row)


@contextmanager
def watch_drift(decoder: Decoder) -> Iterator[Tensor]:
    """Records, per sublayer, the largest |H_res - H_res at init| of all forward passes inside.

    Yields:
        (max(2L, 1),) float32 on the CPU, updated in place; zeros for a plain model.
    """
    connections = decoder.connections()
    drift = torch.zeros(max(len(connections), 1))

    def hook_of(index: int, start: Tensor) -> Callable[[nn.Module, object, Coefficients], None]:
        def hook(_: nn.Module, __: object, output: Coefficients) -> None:
            # (b, t, n, m) against (n, m)
            moved = (output.res.detach() - start).abs().amax().cpu()
            drift[index] = torch.maximum(drift[index], moved)

        return hook

    handles = [
        connection.register_forward_hook(hook_of(index, _start(connection)))
        for index, connection in enumerate(connections)
    ]
    try:
        yield drift
    finally:
        for handle in handles:
            handle.remove()


def _start(connection: HyperConnection) -> Tensor:
    return connection.initial_res().to(connection.base.device)
