"""Configurations as plain values, and overrides of them by dotted keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mhc_model.errors import ConfigError


def overridden(
    values: Mapping[str, Any], overrides: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """A copy of a configuration with other values in it.

    Args:
        values: as in a YAML file.
        overrides: `model.mhc.projection: identity` sets one field; a mapping replaces the whole
            field that it is given for.
        what: whose overrides these are, for the error.

    Raises:
        ConfigError: if a key goes through a field that is no mapping.
    """
    result = copy.deepcopy(dict(values))
    for path, value in overrides.items():
        *parents, last = path.split(".")
        place = result
        for depth, name in enumerate(parents, start=1):
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError(
                    f"{what} sets {path}, but {'.'.join(parents[:depth])} is {place!r}, which has "
                    f"no fields"
                )
        place[last] = copy.deepcopy(value)
    return result
