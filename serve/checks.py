"""What is wrong with settings, found before Ray is started, which takes seconds."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path

from mhc_model.checkpoint import checkpoint_hash, find_checkpoint
from mhc_model.engines import check_engine
from mhc_model.errors import ConfigError
from mhc_model.policy import GatePolicy
from mhc_model.tokenizer import FAST_FILE
from serve.auth import exposure, load_keys
from serve.basics import LOG_STREAMS, JsonLog
from serve.completions import ChatTemplate
from serve.service import check_policy
from serve.settings import ServeSettings


def check_settings(settings: ServeSettings) -> ServeSettings:
    """Checks what a replica would fail on, and that the address is free.

    Returns:
        The settings with absolute paths: replicas may run in another directory.

    Raises:
        CheckpointError, ConfigError: naming the value and the fix.
    """
    check_engine(settings.engine)
    directory = find_checkpoint(settings.checkpoint)
    if not (directory / FAST_FILE).exists():
        raise ConfigError(f"checkpoint {directory} has no tokenizer; save it with one to serve it")
    if settings.policy is not None:
        check_policy(GatePolicy.load(settings.policy), checkpoint_hash(directory))
    ChatTemplate.load(settings.chat_template, directory)
    _check_log(settings.access_log)
    keys = load_keys(settings.api_keys_file)
    if settings.api_keys_file is not None and (wrong := exposure(settings.api_keys_file)):
        print(f"warning: {wrong}", file=sys.stderr)
    if not keys and not _is_loopback(settings.host):
        print(
            f"warning: listening on {settings.host} without API keys: whoever reaches port "
            f"{settings.port} may use the model; give --api-keys-file",
            file=sys.stderr,
        )
    _check_address(settings.host, settings.port)
    return settings.model_copy(
        update={
            "checkpoint": str(directory.resolve()),
            "policy": _absolute(settings.policy),
            "chat_template": _absolute(settings.chat_template),
            "api_keys_file": _absolute(settings.api_keys_file),
            "access_log": settings.access_log
            if settings.access_log in LOG_STREAMS
            else _absolute(settings.access_log),
            "model_name": settings.served_name,
        }
    )


def _check_address(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}); give another --port or --host"
            ) from None


def _check_log(target: str) -> None:
    try:
        JsonLog(target).close()
    except OSError as error:
        raise ConfigError(
            f"access_log {target} cannot be written ({error.strerror}); give another file, or one "
            f"of {', '.join(LOG_STREAMS)}"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())
