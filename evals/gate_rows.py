"""Gates for many problems at once: one vector for all, or one row each."""

from __future__ import annotations

import torch
from torch import Tensor

from mhc_model.config import ModelConfig
from mhc_model.errors import GateError
from mhc_model.gates import GateValues, allowed_gates, expand_gates


def gate_rows(gates: GateValues | None, count: int, config: ModelConfig) -> Tensor | None:
    """Expands gates to one row a problem.

    Args:
        gates: None (the learned gates), whatever `expand_gates` takes (the same for all), or a
            (count, 2L) tensor of numbers in [0, 1], one row a problem, as a gate policy gives it.
        count: number of problems.
        config: of the model that they are for.

    Returns:
        (count, 2L) float32 on the CPU, or None for the learned gates.

    Raises:
        GateError: for anything else, and for any gates of a plain model.
    """
    if gates is None:
        return None
    if config.mhc is None:
        raise GateError("this model is plain (mhc: null): it takes no gates; use learned (none)")
    if not isinstance(gates, Tensor) or gates.ndim != 2:
        return expand_gates(gates, config.n_layers).expand(count, -1)
    if gates.shape != (count, config.n_gates):
        raise GateError(
            f"gates have shape {tuple(gates.shape)}; expected ({count}, {config.n_gates}), one row "
            f"a problem, or one vector for all: {allowed_gates(config.n_layers)}"
        )
    return torch.stack([expand_gates(row, config.n_layers) for row in gates])
