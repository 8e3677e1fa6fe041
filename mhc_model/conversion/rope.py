"""The base of the rotary embedding, wherever a config.json of transformers has it.

Version 4 writes `rope_theta` beside `rope_scaling`, whose kind is called `type` or `rope_type`.
Version 5 writes both into `rope_parameters`, flat or one object a layer type. Only the ordinary
embedding is what the decoder computes; every other kind is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mhc_model.errors import CheckpointError

DEFAULT_THETA = 10000.0  # transformers' for all of these families
SECTIONS = ("rope_parameters", "rope_scaling")
# What an ordinary embedding may be described with.
KNOWN = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def rope_base(entries: Mapping[str, Any], source: str) -> float:
    """The base of an ordinary rotary embedding.

    Args:
        entries: of config.json.
        source: named in errors.

    Raises:
        CheckpointError: for a scaled or partial one, one that differs between layers, or a base
            that is no positive number.
    """
    _check_share(entries, source, "")
    outer = entries.get("rope_theta")
    bases = {}
    for place, parameters in _sections(entries, source):
        _check_kind(parameters, source, place)
        _check_share(parameters, source, place)
        inner = parameters.get("rope_theta")
        base = outer if inner is None else inner
        bases[place] = DEFAULT_THETA if base is None else _number(base, source, place)
    if not bases:
        return DEFAULT_THETA if outer is None else _number(outer, source, "")
    if len(set(bases.values())) > 1:
        told = ", ".join(f"{base:g} in {place}" for place, base in bases.items())
        raise CheckpointError(f"{source}: rope_theta is {told}; supported: one for all layers")
    return next(iter(bases.values()))


def _sections(entries: Mapping[str, Any], source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each set of parameters that there is, and where it stands."""
    for name in SECTIONS:
        value = entries.get(name)
        if value is None or value == {}:
            continue
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{source}: {name} is {value!r:.100}; it must be an object")
        nested = [key for key, part in value.items() if isinstance(part, Mapping)]
        if not nested:
            yield name, value
            continue
        for key, part in value.items():
            if part is None and key not in KNOWN:
                raise CheckpointError(
                    f"{source}: {name} has nothing for {key!r}: layers without a rotary embedding "
                    f"are not supported"
                )
        around = {key: part for key, part in value.items() if key not in nested}
        for key in nested:
            yield f"{name}.{key}", {**around, **value[key]}


def _check_kind(parameters: Mapping[str, Any], source: str, place: str) -> None:
    kinds = [parameters[key] for key in ("rope_type", "type") if parameters.get(key) is not None]
    for kind in kinds:
        if kind != "default":
            raise CheckpointError(
                f"{source}: the rotary embedding is scaled (rope_type {kind!r} in {place}); "
                f"supported: 'default'"
            )
    for key, value in parameters.items():
        if key not in KNOWN and value is not None:
            raise CheckpointError(
                f"{source}: {place} has {key!r} ({value!r:.100}), which no ordinary rotary "
                f"embedding has; supported: {', '.join(KNOWN)}"
            )


def _check_share(parameters: Mapping[str, Any], source: str, place: str) -> None:
    share = parameters.get("partial_rotary_factor")
    if share not in (None, 1.0):
        where = f" in {place}" if place else ""
        raise CheckpointError(f"{source}: partial_rotary_factor is {share}{where}; supported: 1.0")


def _number(value: Any, source: str, place: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < 1e300 or not math.isfinite(value):
        where = f" in {place}" if place else ""
        raise CheckpointError(
            f"{source}: rope_theta is {value!r:.100}{where}; it must be a positive number"
        )
    return float(value)
