"""A run's directory belongs to one configuration."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import yaml

from mhc_model.errors import ConfigError
from mhc_model.settings import Settings, dump_settings, validate_settings


def claim_directory(directory: Path, config: Settings, free: Collection[str], what: str) -> None:
    """Makes the directory of a run, or checks that an earlier start had the same configuration;
    writes config.yaml.

    Args:
        directory: of the run.
        config: resolved.
        free: fields that may differ.
        what: the run in words, for the error.

    Raises:
        ConfigError: naming the fields that differ, with their values.
    """
    saved = directory / "config.yaml"
    if saved.exists():
        values = yaml.safe_load(saved.read_text(encoding="utf-8"))
        before = validate_settings(type(config), values, str(saved)).model_dump()
        now = config.model_dump()
        different = [key for key in before if before[key] != now[key] and key not in free]
        if different:
            changes = "; ".join(f"{key}: {before[key]!r} -> {now[key]!r}" for key in different)
            raise ConfigError(
                f"{what} exists in {directory} with other settings: {changes}; give "
                f"another name, or delete the directory"
            )
    directory.mkdir(parents=True, exist_ok=True)
    dump_settings(config, saved)
