"""Gate vectors: what a caller may give, and the functions that expand it.

A model of L layers has 2L gates, ordered layer 0 attention, layer 0 mlp, layer 1 attention, ...
Each blends the sublayer's stream mixing with the identity: (1 - g) I + g H_res.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import NamedTuple, cast

import torch
from torch import Tensor

from mhc_model.config import BEHAVIOUR_NAME, ModelConfig
from mhc_model.errors import GateError

SUBLAYERS = ("attention", "mlp")

LEARNED = "learned"
IN_WORDS = (
    f"{LEARNED}; 1, L or 2L numbers in [0, 1] separated by commas; the name of a behaviour of the "
    "model; or two of these with a colon between, for prompt and answer apart"
)
"""What commands take as gates; some take more."""

GateValues = float | Sequence[float] | Tensor
"""What a caller may give: one number, or a flat list or tensor of 1, L or 2L numbers."""

RequestGates = GateValues | str | Mapping[str, GateValues | str | None] | None
"""What a request may give: those, a name, or both for its prompt and its answer apart."""


def gate_names(n_layers: int) -> list[str]:
    """Names of the 2L gates in order: `layer0.attention`, `layer0.mlp`, ..."""
    return [f"layer{i}.{name}" for i in range(n_layers) for name in SUBLAYERS]


def allowed_gates(n_layers: int) -> str:
    """The sentence about lengths and range that every gate error carries."""
    return (
        f"allowed: 1 number (global), {n_layers} (one per layer) or {2 * n_layers} "
        f"(one per sublayer), each in [0, 1]"
    )


def parse_gates(argument: str, accepted: str = IN_WORDS) -> RequestGates:
    """The gates of a command line, as `resolve_gates` takes them.

    Args:
        argument: as it was typed.
        accepted: what the command takes, for the error.

    Raises:
        GateError: if it is none of `IN_WORDS`. Whether numbers and names fit a model is for
            `resolve_gates` to check.
    """
    prompt, colon, answer = argument.partition(":")
    if colon:
        return {
            "prompt": _parse_one(prompt, argument, accepted),
            "answer": _parse_one(answer, argument, accepted),
        }
    return _parse_one(argument, argument, accepted)


def _parse_one(part: str, argument: str, accepted: str) -> list[float] | str | None:
    if part == LEARNED:
        return None
    try:
        return [float(number) for number in part.split(",")]
    except ValueError:
        if re.fullmatch(BEHAVIOUR_NAME, part):
            return part
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


class PhaseGates(NamedTuple):
    """Gates of one request: those under which its prompt is read, and those of its answer."""

    prompt: Tensor | None  # (2L,) float32; None is the learned gates
    answer: Tensor | None


def resolve_gates(gates: RequestGates, config: ModelConfig) -> PhaseGates:
    """The numbers behind what a request gives as gates.

    Args:
        gates: None or "learned"; the name of a behaviour of the model; what `expand_gates` takes;
            a mapping of "prompt" and "answer" to any of these, for gates that change once the
            prompt is read; or a (2, n) tensor, the same two in rows.
        config: of the model.

    Raises:
        GateError: for anything else, naming what is allowed; and for any gates of a plain model.
    """
    if isinstance(gates, Mapping):
        unknown = [str(key) for key in gates if key not in PhaseGates._fields]
        if unknown or not gates:
            raise GateError(
                f"gates have the keys {', '.join(map(str, gates)) or 'none'}; allowed: prompt, "
                f"answer"
            )
        return PhaseGates(*(_resolve(gates.get(phase), config) for phase in PhaseGates._fields))
    if isinstance(gates, Tensor) and gates.ndim == 2 and len(gates) == 2:
        return PhaseGates(_resolve(gates[0], config), _resolve(gates[1], config))
    both = _resolve(gates, config)
    return PhaseGates(both, both)


def _resolve(gates: object, config: ModelConfig) -> Tensor | None:
    if gates is None or (isinstance(gates, str) and gates == LEARNED):
        return None
    if config.gateless is not None:
        raise GateError(
            f"this model is {config.gateless}: it takes no gates; use learned, or leave them out"
        )
    if not isinstance(gates, str):
        return expand_gates(gates, config.n_layers)  # type: ignore[arg-type]  # it checks
    behaviour = config.behaviours.get(gates)
    if behaviour is None:
        names = ", ".join((LEARNED, *config.behaviours))
        raise GateError(
            f"gates are {gates!r}; the names of this model are {names}; "
            f"{allowed_gates(config.n_layers)}"
        )
    return expand_gates(behaviour.representative, config.n_layers)


def expand_gate_rows(
    gates: RequestGates, count: int, config: ModelConfig, learned: Tensor | None = None
) -> Tensor | None:
    """Expands gates to one row a problem.

    Args:
        gates: what `resolve_gates` takes (the same for all), or a (count, 2L) tensor of numbers in
            [0, 1], one row a problem, or a (count, 2, 2L) one of prompt and answer, as a gate
            policy gives them.
        count: number of problems.
        config: of the model that they are for.
        learned: (2L,) learned gates, which stand where only prompt or only answer has others.

    Returns:
        (count, 2L) float32 on the CPU; (count, 2, 2L) where prompt and answer differ; None for the
        learned gates.

    Raises:
        GateError: for anything else, and for any gates of a plain model.
    """
    if isinstance(gates, Tensor) and gates.ndim > 1 and config.gateless is None:
        if gates.shape not in ((count, config.n_gates), (count, 2, config.n_gates)):
            raise GateError(
                f"gates have shape {tuple(gates.shape)}; expected ({count}, {config.n_gates}), one "
                f"row a problem, or one vector for all: {allowed_gates(config.n_layers)}"
            )
        flat = [expand_gates(row, config.n_layers) for row in gates.flatten(0, -2)]
        return torch.stack(flat).view(gates.shape)
    prompt, answer = resolve_gates(gates, config)
    if prompt is None and answer is None:
        return None
    if prompt is answer or (prompt is not None and answer is not None and prompt.equal(answer)):
        return None if prompt is None else prompt.expand(count, -1)
    if learned is None and (prompt is None or answer is None):
        raise GateError("the learned gates of the model are needed beside gates of one phase")
    phases = [learned if phase is None else phase for phase in (prompt, answer)]
    return torch.stack([cast(Tensor, phase).cpu().float() for phase in phases]).expand(
        count, -1, -1
    )


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
