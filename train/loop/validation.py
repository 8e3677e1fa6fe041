"""Held-out loss under learned and fixed gates, and what the routing does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evals.tasks import bits_per_byte
from mhc_model.decoder import Decoder
from mhc_model.errors import DataError
from mhc_model.gates import GateValues, expand_gate_rows
from mhc_model.routing import watch_routing
from mhc_model.tokenizer import Tokenizer
from train.data import IGNORED, AnswerCorpus, pack
from train.loop.process_group import ProcessGroup

# Sequences of answers that are evaluated together.
SEQUENCES_AT_ONCE = 16
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
        bits = self._own_bits(decoder, gates) if self.own else 0.0  # fewer texts than workers
        bits = self.group.total(bits)
        return {
            f"val_loss{suffix}": bits * math.log(2.0) / self.all_tokens,
            f"val_bpb{suffix}": bits / self.all_bytes,
        }

    def _own_bits(self, decoder: Decoder, gates: GateValues | None) -> float:
        """Bits that the model needs for this worker's share."""
        return self.own_bytes * bits_per_byte(
            decoder, self.tokenizer, self.own, gates, context=self.context
        )

    def _count_bytes(self, documents: Sequence[str]) -> int:
        lengths = self.tokenizer.token_byte_lengths()
        rows = self.tokenizer.encode_batch(documents)
        return sum(int(lengths[row].sum()) for row in rows if row)


class AnswerValidation(Validation):
    """Held-out answers, each after its question: loss per token and bits per byte of answers."""

    def __init__(self, corpus: AnswerCorpus, group: ProcessGroup, context: int) -> None:
        """As `Validation`; examples longer than `context` are left out.

        Raises:
            DataError: if none is left.
        """
        self.group = group
        inputs, targets = pack(corpus.held_out, context, corpus.tokenizer.eos_id)
        if not len(inputs):
            raise DataError(
                f"every held-out example is longer than a sequence of {context} tokens; raise "
                f"sequence_length"
            )
        self.own = list(zip(inputs, targets, strict=True))[group.rank :: group.size]
        wanted = torch.from_numpy(targets[targets != IGNORED])
        self.all_bytes = int(corpus.tokenizer.token_byte_lengths()[wanted].sum())
        self.all_tokens = len(wanted)

    def _own_bits(self, decoder: Decoder, gates: GateValues | None) -> float:
        device, training = decoder.embedding.weight.device, decoder.training
        decoder.eval()
        nats = 0.0
        for start in range(0, len(self.own), SEQUENCES_AT_ONCE):
            rows = torch.tensor(np.array(self.own[start : start + SEQUENCES_AT_ONCE]))
            inputs, targets = rows.to(device).unbind(1)
            nats += _answer_nats(decoder, inputs, targets, gates)
        decoder.train(training)
        return nats / math.log(2.0)


@torch.inference_mode()
def _answer_nats(
    decoder: Decoder, inputs: Tensor, targets: Tensor, gates: GateValues | None
) -> float:
    """Negative log-likelihood of all targets that are learned; inputs and targets (b, t) int64."""
    rows = expand_gate_rows(gates, len(inputs), decoder.config)
    learned = targets != IGNORED
    logits = decoder.logits(decoder.hidden(inputs, rows)[learned])
    return float(F.cross_entropy(logits, targets[learned], reduction="none").double().sum())
