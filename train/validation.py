"""Held-out loss under learned and fixed gates, and what the routing does."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evals.bits_per_byte import bits_per_byte
from mhc_model.decoder import Decoder
from mhc_model.gates import GateValues
from mhc_model.routing import watch_routing
from mhc_model.tokenizer import Tokenizer
from train.process_group import ProcessGroup

# Gates that an mHC model is validated with, by the suffix of the metric.
VALIDATION_GATES: dict[str, GateValues | None] = {"": None, "_gate_0": 0.0, "_gate_1": 1.0}


class Validation:
    """The held-out documents, shared out over the workers."""

    def __init__(
        self, documents: Sequence[str], tokenizer: Tokenizer, group: ProcessGroup, context: int
    ) -> None:
        """Keeps this worker's share, and the size of the whole.

        Args:
            documents: all held-out documents, the same on every worker.
            tokenizer: of the model.
            group: the workers.
            context: tokens of a training sequence, and so of a held-out one: a model that has seen
                no longer ones is not asked for longer ones.
        """
        self.context = context
        self.tokenizer = tokenizer
        self.group = group
        self.own = documents[group.rank :: group.size]
        self.own_bytes = self._count_bytes(self.own)
        self.all_bytes = self._count_bytes(documents)
        self.all_tokens = sum(map(len, tokenizer.encode_batch(documents)))

    def evaluate(self, decoder: Decoder) -> dict[str, float | list[float]]:
        """Metrics of the whole held-out text; every worker calls it.

        Returns:
            val_bpb (bits per byte) and val_loss (nats per token). For an mHC model also both with
            the suffixes _gate_0 and _gate_1, the learned `gates` (2L) and the routing figures of
            `mhc_model.routing`. All are of the whole text but these figures, which but for
            `h_res_drift` are of this worker's share, windows' padding included.
        """
        if decoder.config.mhc is None:
            return self._losses(decoder, "", None)
        with watch_routing(decoder) as routing:
            metrics = self._losses(decoder, "", None)
        metrics |= routing.summary() if self.own else {}
        metrics["h_res_drift"] = self.group.maximum(float(metrics.get("h_res_drift", 0.0)))
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
            bits = self.own_bytes * bits_per_byte(
                decoder, self.tokenizer, self.own, gates, context=self.context
            )
        bits = self.group.total(bits)
        return {
            f"val_loss{suffix}": bits * math.log(2.0) / self.all_tokens,
            f"val_bpb{suffix}": bits / self.all_bytes,
        }

    def _count_bytes(self, documents: Sequence[str]) -> int:
        lengths = self.tokenizer.token_byte_lengths()
        rows = self.tokenizer.encode_batch(documents)
        return sum(int(lengths[row].sum()) for row in rows if row)
