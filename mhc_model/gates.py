"""Gate vectors: what a caller may give, and the functions that expand it.

A model of L layers has 2L gates, ordered layer 0 attention, layer 0 mlp, layer 1 attention, ...
Each blends the sublayer's stream mixing with the identity: (1 - g) I + g H_res.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from mhc_model.config import ModelConfig
from mhc_model.errors import GateError

SUBLAYERS = ("attention", "mlp")

LEARNED = "learned"
IN_WORDS = f"{LEARNED}, or 1, L or 2L numbers in [0, 1] separated by commas"
"""What commands take as gates; some take more."""

GateValues = float | Sequence[float] | Tensor
"""What a caller may give: one number, or a flat list or tensor of 1, L or 2L numbers."""


def gate_names(n_layers: int) -> list[str]:
    """Names of the 2L gates in order: `layer0.attention`, `layer0.mlp`, ..."""
    return [f"layer{i}.{name}" for i in range(n_layers) for name in SUBLAYERS]


def allowed_gates(n_layers: int) -> str:
    """The sentence about lengths and range that every gate error carries."""
    return (
        f"allowed: 1 number (global), {n_layers} (one per layer) or {2 * n_layers} "
        f"(one per sublayer), each in [0, 1]"
    )


def parse_gates(argument: str, accepted: str = IN_WORDS) -> list[float] | None:
    """The gates of a command line: numbers separated by commas; `learned` is None.

    Args:
        argument: as it was typed.
        accepted: what the command takes, for the error.

    Raises:
        GateError: if it is neither; their number and range are `expand_gates`' to check.
    """
    if argument == LEARNED:
        return None
    try:
        return [float(part) for part in argument.split(",")]
    except ValueError:
        raise GateError(f"gates are {argument!r}; accepted: {accepted}") from None


def expand_gates(gates: GateValues, n_layers: int) -> Tensor:
    """Expands one request's gates to one number per sublayer.

    Args:
        gates: a number, or a flat list, tuple or tensor of 1, L or 2L numbers in [0, 1].
        n_layers: L, the number of layers of the model.

    Returns:
        (2L,) float32 tensor on the CPU, ordered as `gate_names`.

    Raises:
        GateError: for anything else, NaN, a wrong length or a number outside [0, 1]; the message
            names the value and what is allowed.
    """
    values = _as_floats(gates, n_layers)
    for position, value in enumerate(values):
        if math.isnan(value) or not 0.0 <= value <= 1.0:
            raise GateError(f"gate {position} is {value}; {allowed_gates(n_layers)}")
    if len(values) == 1:
        values = values * (2 * n_layers)
    elif len(values) == 2 * n_layers:
        pass
    elif len(values) == n_layers:
        values = [value for value in values for _ in SUBLAYERS]
    else:
        raise GateError(f"{len(values)} gates given; {allowed_gates(n_layers)}")
    # -0.0 + 0.0 is 0.0: equal gates have equal bits, hence one hash.
    return torch.tensor(values, dtype=torch.float32) + 0.0


def expand_gate_rows(gates: GateValues | None, count: int, config: ModelConfig) -> Tensor | None:
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


def _as_floats(gates: object, n_layers: int) -> list[float]:
    if isinstance(gates, Tensor):
        if gates.ndim > 1 or gates.is_complex() or gates.dtype == torch.bool:
            raise GateError(
                f"gates tensor has shape {tuple(gates.shape)} and dtype {gates.dtype}; it must be "
                f"a flat tensor of real numbers; {allowed_gates(n_layers)}"
            )
        return [float(value) for value in gates.detach().reshape(-1).tolist()]
    # numpy arrays and scalars arrive here too: tolist() gives plain Python numbers.
    if hasattr(gates, "tolist"):
        gates = gates.tolist()
    entries = [gates] if isinstance(gates, Real) else gates
    if isinstance(entries, str | bytes) or not isinstance(entries, Sequence):
        raise GateError(f"gates are {gates!r}; {allowed_gates(n_layers)}")
    for position, entry in enumerate(entries):
        if isinstance(entry, bool) or not isinstance(entry, Real):
            raise GateError(
                f"gate {position} is {entry!r}, not a number; {allowed_gates(n_layers)}"
            )
    return [_to_float(entry) for entry in entries]


def _to_float(entry: Real) -> float:
    try:
        return float(entry)
    except OverflowError:  # an integer too large for a float is out of range all the same
        return math.inf


def gates_hash(gates: Tensor) -> str:
    """sha256 hex of the gates as little-endian float32: the key of caches and the name in logs."""
    array = gates.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(array.astype("<f4").tobytes()).hexdigest()
