"""The gates of a model: the learned ones, others set in their place, and those of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhc_model.config import ModelConfig
from mhc_model.errors import GateError
from mhc_model.gates import (
    GateValues,
    RequestGates,
    allowed_gates,
    expand_gates,
    resolve_gates,
)


class Gated(nn.Module):
    """What `Decoder` offers about its gates; a plain model has none.

    Attributes:
        gate_logits: (2L,) logits of the learned gates; only with `config.mhc` whose streams mix.
    """

    gate_logits: nn.Parameter
    stream_embedding: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self._set_gates: Tensor | None = None

    def learned_gates(self) -> Tensor:
        """(2L,) float32 in (0, 1), differentiable: what `gates=None` means.

        Of a model whose H_res is I and that accepts gates, constants: nothing could learn them.

        Raises:
            GateError: for a model that takes no gates.
        """
        if self.config.gateless is not None or self.config.mhc is None:
            raise GateError(f"this model is {self.config.gateless}: it has no gates")
        if not self.config.mhc.mixes:
            return self._constant_gates(self.config.mhc.gate_init, 1)[0]
        return torch.sigmoid(self.gate_logits.float())

    def gate_rows(self, rows: Sequence[RequestGates]) -> Tensor:
        """Gates of a batch in which some rows have their own and None means the default ones.

        Args:
            rows: per sequence what `resolve_gates` takes, of which those of the prompt count.

        Returns:
            (b, 2L) float32 on the model's device. The default is the learned gates,
            differentiable, unless `set_gates` has changed it.

        Raises:
            GateError: for gates out of range or of a wrong length, and for a plain model.
        """
        learned = self._default_gates()
        expanded = [resolve_gates(row, self.config).prompt for row in rows]
        return torch.stack([learned if row is None else row.to(learned) for row in expanded])

    def gate_rows_or_none(self, rows: Sequence[RequestGates]) -> Tensor | None:
        """As `gate_rows`; None for a model that takes no gates, if none are given."""
        if self.config.gateless is None:
            return self.gate_rows(rows)
        for row in rows:
            resolve_gates(row, self.config)  # refuses all but None
        return None

    def set_gate(self, gate: float | Tensor) -> None:
        """Makes one gate for all sublayers the default: what `gates=None` means, for notebooks.

        No checkpoint holds it, gates given with a call win, and an Engine or a training run keeps
        to the learned gates. `reset_gates` undoes it.

        Raises:
            GateError: if the gate is not in [0, 1], or the model is plain.
        """
        self.set_gates(gate)

    def set_gates_per_layer(self, gates: Sequence[float]) -> None:
        """As `set_gate`, with one gate for each of the L layers."""
        self.learned_gates()  # a plain model has none
        count = len(gates) if isinstance(gates, Sequence | Tensor) else 1
        if count != self.config.n_layers:
            raise GateError(f"{count} gates for {self.config.n_layers} layers; give one each")
        self.set_gates(gates)

    def set_gates(self, gates: GateValues) -> None:
        """As `set_gate`, with whatever `expand_gates` takes."""
        learned = self.learned_gates().detach()
        self._set_gates = expand_gates(gates, self.config.n_layers).to(learned)

    def reset_gates(self) -> None:
        """Makes the learned gates the default again."""
        self._set_gates = None

    def _default_gates(self) -> Tensor:
        learned = self.learned_gates()
        return learned if self._set_gates is None else self._set_gates.to(learned)

    def _constant_gates(self, gate: float, batch: int) -> Tensor:
        """(b, 2L) float32."""
        shape = (batch, 2 * self.config.n_layers)
        return torch.full(shape, gate, device=self.stream_embedding.device)

    def checked_gates(self, gates: Tensor | None, batch: int, tokens: int) -> Tensor | None:
        """Gates of a forward pass, (b, 2L) or (b, t, 2L), on the model's device; None if it takes
        none."""
        if self.config.gateless is not None:
            if gates is not None:
                raise GateError(f"this model is {self.config.gateless}: it takes no gates")
            return None
        if gates is None:
            return self._default_gates().expand(batch, -1)
        n_gates = self.config.n_gates
        if gates.shape not in ((batch, n_gates), (batch, tokens, n_gates)):
            raise GateError(
                f"gates have shape {tuple(gates.shape)}; expected ({batch}, "
                f"{self.config.n_gates}), one row per sequence, or one per token; "
                f"{allowed_gates(self.config.n_layers)} through expand_gates"
            )
        return gates.to(self.stream_embedding.device)
