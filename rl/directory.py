"""A run's directory belongs to one configuration, and to one process at a time."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mhc_model.errors import ConfigError
from mhc_model.files import lock_directory
from mhc_model.settings import Settings, dump_settings, validate_settings

CONFIG = "config.yaml"


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Makes the directory and keeps other processes out of it; the lock ends with the process.

    Raises:
        ConfigError: if another process is in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = lock_directory(directory)
    if lock is None:
        raise ConfigError(
            f"another process is writing to {directory}; wait for it, or give another name"
        )
    try:
        yield
    finally:
        os.close(lock)


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
        before = validate_settings(type(config), values, str(saved)).model_dump()
        now = config.model_dump()
        different = [key for key in before if before[key] != now[key] and key not in free]
        if different:
            changes = "; ".join(f"{key}: {before[key]!r} -> {now[key]!r}" for key in different)
            raise ConfigError(
                f"{what} exists in {directory} with other settings: {changes}; give "
                f"another name, or delete the directory"
            )


def check_same(
    before: Mapping[str, Any], now: Mapping[str, Any], keys: Collection[str], what: str
) -> None:
    """Checks that an earlier start had the same inputs, by their hashes.

    Args:
        before: of the earlier start; what an earlier version did not note is not compared.
        now: of this one.
        keys: names of the inputs.
        what: the run in words, for the error.

    Raises:
        ConfigError: naming the one that differs, with both hashes.
    """
    for key in keys:
        if before.get(key, now[key]) != now[key]:
            raise ConfigError(
                f"{what} was started on {key} {before[key]}, not on {now[key]}; give another name"
            )


def save_config(directory: Path, config: Settings) -> None:
    """Writes config.yaml."""
    directory.mkdir(parents=True, exist_ok=True)
    dump_settings(config, directory / CONFIG)
