"""A run's directory belongs to one configuration, and to one process at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from mhc_model.errors import ConfigError
from mhc_model.files import locked_directory
from mhc_model.settings import (
    Settings,
    check_same_settings,
    differences,
    dump_settings,
    validate_settings,
)

CONFIG = "config.yaml"


def locked_run(directory: Path) -> AbstractContextManager[None]:
    """Makes the directory of a run and keeps other processes out of it.

    Raises:
        ConfigError: if another process is in it.
    """
    taken = f"another process is writing to {directory}; wait for it, or give another name"
    return locked_directory(directory, taken)


def check_directory(directory: Path, config: Settings, free: Collection[str], what: str) -> None:
    """Checks that an earlier start in the directory, if there was one, had the same configuration.
    Whoever has checked everything else too writes it with `save_config`.

    Args:
        directory: of the run.
        config: resolved.
        free: fields that may differ.
        what: the run in words, for the error.

    Raises:
        ConfigError: naming the fields that differ, with their values.
    """
    saved = directory / CONFIG
    if saved.exists():
        values = yaml.safe_load(saved.read_text(encoding="utf-8"))
        before = validate_settings(type(config), values, str(saved))
        check_same_settings(before, config, free, f"{what} exists in {directory}")


def check_same_inputs(before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Checks that an earlier start had the same inputs, by their hashes.

    Args:
        before: of the earlier start; what an earlier version did not note is not compared.
        now: name -> hash of this one.
        what: the run in words, for the error.

    Raises:
        ConfigError: naming the first that differs, with both hashes.
    """
    noted = {name: before.get(name, value) for name, value in now.items()}
    for name, then, value in differences(noted, now):
        raise ConfigError(f"{what} was started on {name} {then}, not on {value}; give another name")


def save_config(directory: Path, config: Settings) -> None:
    """Writes config.yaml."""
    directory.mkdir(parents=True, exist_ok=True)
    dump_settings(config, directory / CONFIG)
