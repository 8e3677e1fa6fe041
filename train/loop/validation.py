"""Held-out loss under the rows' own gates and under fixed ones, and what the routing does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evals.tasks import bits_per_byte
from mhc_model.decoder import Decoder
from mhc_model.errors import DataError
from mhc_model.gates import GateValues, expand_gate_rows
from mhc_model.routing import watch_routing
from train.data import IGNORED, NO_GROUP, AnswerCorpus, Corpus, pack_groups
from train.loop.objective import GroupGates
from train.loop.process_group import ProcessGroup

# Sequences of answers that are evaluated together.
SEQUENCES_AT_ONCE = 16
# Gates that an mHC model is validated with, by the suffix of the metric.
VALIDATION_GATES: dict[str, GateValues] = {"_gate_0": 0.0, "_gate_1": 1.0}


class Validation:
    """The held-out documents, shared out over the workers.

    Attributes:
        own: this worker's share.
        own_groups: (share,) int64 group of each, -1 of none.
        own_bytes: UTF-8 bytes of the share.
        all_bytes: of all documents.
        all_tokens: of all documents.
    """

    def __init__(
        self,
        corpus: Corpus,
        group: ProcessGroup,
        context: int,
        gates: GroupGates | None = None,
    ) -> None:
        """Keeps this worker's share, and the size of the whole.

        Args:
            corpus: the same on every worker.
            group: the workers.
            context: tokens of a training sequence, and so of a held-out one: a model that has seen
                no longer ones is not asked for longer ones.
            gates: of the corpus's groups, if it has some.
        """
        self.context, self.tokenizer = context, corpus.tokenizer
        self.group, self.gates = group, gates
        items, groups, tokens, sizes = self._measure(corpus)
        names = [None] * len(items) if gates is None else [gates.name(g) for g in groups]
        # Rows with the same name are evaluated together; those without, first.
        self.names = sorted(set(names), key=lambda name: (name is not None, name))
        self._tokens = {name: 0 for name in self.names}
        for name, count in zip(names, tokens, strict=True):
            self._tokens[name] += count
        self.all_tokens, self.all_bytes = sum(tokens), sum(sizes)
        share = slice(group.rank, None, group.size)
        self.own, self.own_groups = items[share], torch.tensor(groups)[share]
        self._own_names, self._own_sizes = names[share], sizes[share]
        self.own_bytes = sum(self._own_sizes)

    def _measure(self, corpus: Corpus) -> tuple[list[Any], list[int], list[int], list[int]]:
        """What is evaluated: items, and of each its group, tokens and bytes."""
        lengths = self.tokenizer.token_byte_lengths()
        rows = self.tokenizer.encode_batch(list(corpus.validation))
        groups = corpus.validation_groups or [NO_GROUP] * len(rows)
        sizes = [int(lengths[row].sum()) if row else 0 for row in rows]
        return list(corpus.validation), list(groups), list(map(len, rows)), sizes

    def evaluate(self, decoder: Decoder) -> dict[str, float | list[float]]:
        """Metrics of the whole held-out text; every worker calls it.

        Returns:
            val_bpb (bits per byte) and val_loss (nats per token), rows with a behaviour under the
            gates that represent it, rows with gates under these, others under the learned ones; and
            of the rows of each behaviour val_loss.NAME. For an mHC model also val_bpb and val_loss
            of all rows with the suffixes _gate_0 and _gate_1, the learned `gates` (2L) and the
            routing figures of `mhc_model.routing`. All are of the whole text but these figures,
            which but for `h_res_drift` are of this worker's share, windows' padding included.
        """
        if decoder.config.mhc is None:
            return self._own_losses(decoder)
        with watch_routing(decoder) as routing:
            metrics = self._own_losses(decoder)
        metrics |= routing.summary() if self.own else {}
        metrics["h_res_drift"] = self.group.maximum(float(metrics.get("h_res_drift", 0.0)))
        if decoder.config.gateless is not None:
            return metrics
        metrics["gates"] = [round(gate, 6) for gate in decoder.learned_gates().tolist()]
        for suffix, gate in VALIDATION_GATES.items():
            bits = self._own_bits(decoder, range(len(self.own)), gate)
            metrics |= self._losses(suffix, self.group.total(bits))
        return metrics

    def _own_losses(self, decoder: Decoder) -> dict[str, float | list[float]]:
        """With every row under its own gates."""
        bits = {}
        for name in self.names:
            places = [place for place, own in enumerate(self._own_names) if own == name]
            gates = self._row_gates(decoder, self.own_groups[places])
            bits[name] = self.group.total(self._own_bits(decoder, places, gates))
        apart = {
            f"val_loss.{name}": value * math.log(2.0) / self._tokens[name]
            for name, value in bits.items()
            if name is not None
        }
        return self._losses("", sum(bits.values())) | apart

    def _losses(self, suffix: str, bits: float) -> dict[str, float | list[float]]:
        return {
            f"val_loss{suffix}": bits * math.log(2.0) / self.all_tokens,
            f"val_bpb{suffix}": bits / self.all_bytes,
        }

    def _row_gates(self, decoder: Decoder, groups: Tensor) -> Tensor | None:
        """(rows, 2L) gates of these groups; None where all are the learned ones."""
        if self.gates is None or (groups == NO_GROUP).all():
            return None
        own = self.gates.representative[groups.clamp(min=0)]
        learned = decoder.learned_gates().detach().cpu()
        return torch.where((groups == NO_GROUP)[:, None], learned, own)

    def _own_bits(self, decoder: Decoder, places: Sequence[int], gates: GateValues | None) -> float:
        """Bits that the model needs for some of this worker's share.

        Args:
            decoder: that is evaluated.
            places: in `own`; there are none where there are fewer texts than workers.
            gates: one number, (places, 2L), or None for the learned ones.
        """
        if not places:
            return 0.0
        size = sum(self._own_sizes[place] for place in places)
        texts = [self.own[place] for place in places]
        return size * bits_per_byte(decoder, self.tokenizer, texts, gates, context=self.context)


class AnswerValidation(Validation):
    """Held-out answers, each after its question: loss per token and bits per byte of answers.

    What is evaluated are sequences of whole examples; those longer than one are left out.
    """

    def _measure(self, corpus: Corpus) -> tuple[list[Any], list[int], list[int], list[int]]:
        """As in `Validation`.

        Raises:
            DataError: if no example is left.
        """
        assert isinstance(corpus, AnswerCorpus)
        packed = pack_groups(corpus.held_out, self.context, self.tokenizer.eos_id)
        if not len(packed.inputs):
            raise DataError(
                f"every held-out example is longer than a sequence of {self.context} tokens; raise "
                f"sequence_length"
            )
        lengths = self.tokenizer.token_byte_lengths()
        wanted = [torch.from_numpy(row[row != IGNORED]) for row in packed.targets]
        return (
            list(zip(packed.inputs, packed.targets, strict=True)),
            packed.groups.tolist(),
            list(map(len, wanted)),
            [int(lengths[row].sum()) for row in wanted],
        )

    def _own_bits(self, decoder: Decoder, places: Sequence[int], gates: GateValues | None) -> float:
        device, training = decoder.embedding.weight.device, decoder.training
        decoder.eval()
        nats = 0.0
        for start in range(0, len(places), SEQUENCES_AT_ONCE):
            part = slice(start, start + SEQUENCES_AT_ONCE)
            rows = torch.tensor(np.array([self.own[place] for place in places[part]]))
            inputs, targets = rows.to(device).unbind(1)
            own = gates[part] if isinstance(gates, Tensor) else gates
            nats += _answer_nats(decoder, inputs, targets, own)
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
