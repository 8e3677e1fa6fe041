"""Ray, started or joined, or the reason why not in one line. Who calls brings the module `ray`:
nothing in mhc_model imports it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mhc_model.errors import ConfigError
from mhc_model.running.progress import doing
from mhc_model.running.supervisor import STOPS

# The path of a socket has at most 107 bytes, 103 on a Mac. Ray puts behind its directory
# /session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store.
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
BELOW_TEMP_DIR = 64
CONNECT_S, ANSWER_S = 10.0, 2.0
# Loggers of Ray, and what their warnings say that is no news.
NO_NEWS = {
    # A busy machine answered late, and is asked again.
    "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client": "resource",
    # Ray's own use of what it deprecates, its defaults, and a package that nothing needs.
    "ray._common.deprecation": "DeprecationWarning",
    "ray.rllib.algorithms.algorithm_config": "new API stack",
    "ray.tune.utils.util": "Install gputil",
}
BEHIND_REASON = re.compile(r"Last \d+ lines|Please check|Last connection error|Traceback|\n\n")
HOOK = "mhc_model.running.cluster.quiet"


def check_address(address: str, source: str) -> None:
    """Refuses what is no address of a Ray cluster.

    Args:
        address: "auto", or host:port.
        source: where it comes from, for the error.

    Raises:
        ConfigError: if it is an URL or has no port.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16) or "/" in address:
        url = ", an URL such as a dashboard or a client has" if "://" in address else ""
        raise ConfigError(
            f"{source} is {address!r}{url}; allowed: host:port of the head node (the port is 6379 "
            f"unless it was chosen), or auto"
        )


def check_temp_dir(directory: str, source: str) -> None:
    """Refuses what cannot be the directory of a private cluster.

    Args:
        directory: of sockets, logs and objects.
        source: where it comes from, for the error.

    Raises:
        ConfigError: if it is relative, or too long for sockets.
    """
    longest, size = LONGEST_SOCKET - BELOW_TEMP_DIR, len(os.fsencode(directory))
    if os.path.isabs(directory) and size <= longest:
        return
    wrong = "not absolute"
    if size > longest:
        wrong = f"{size} bytes long, and at most {longest} leave room for the names of sockets"
    raise ConfigError(
        f"{source} is {directory!r}, which is {wrong}; give a short one with --ray.temp-dir, such "
        f"as /tmp/ray-of-mine"
    )


@contextmanager
def ray_cluster(ray: ModuleType, arguments: Mapping[str, Any], **more: Any) -> Iterator[None]:
    """Ray within, started or joined by whoever comes first, who shuts it down, too.

    Args:
        ray: the module.
        arguments: of `RaySettings.init_arguments`.
        more: further keyword arguments of `ray.init`.

    Raises:
        ConfigError: if Ray does not start, with its reason in one line. Nothing of it is left then.
    """
    if ray.is_initialized():
        yield
        return
    private = arguments["address"] == "local"
    if private:
        _make_temp_dir(arguments.get("_temp_dir"))
    else:
        _reach(arguments["address"])
    options: dict[str, Any] = {"logging_level": logging.WARNING, **arguments, **more}
    if private:
        hook = {"worker_process_setup_hook": HOOK}
        options["runtime_env"] = {**hook, **options.get("runtime_env", {})}
    quiet()
    what = "starting Ray" if private else f"joining the Ray cluster at {arguments['address']}"
    with doing(what), _own_handlers():
        try:
            with _quiet_start():
                ray.init(**options)
        # Whatever it is: Ray raises RuntimeError, ValueError, OSError, its own and plain Exception
        # for a cluster that does not start, cannot be reached, or speaks another protocol.
        except Exception as error:
            with contextlib.suppress(Exception):
                ray.shutdown()
            raise ConfigError(_in_words(error, private, arguments)) from None
    try:
        yield
    finally:
        ray.shutdown()


def quiet() -> None:
    """Leaves out the noise of Ray in this process; every worker of a private cluster calls it."""
    for name in NO_NEWS:
        # Not a level: Ray Train resets those.
        logging.getLogger(name).addFilter(_is_news)


def _reach(address: str) -> None:
    """Ray itself would wait for minutes, and end the process."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as there:
            said = _answer_to_http(there)
    except (OSError, UnicodeError) as error:
        said = str(error)
    if said is not None:
        raise ConfigError(
            f"the Ray cluster at {address} does not answer ({said}); start it, correct the "
            f"address (ray.address or RAY_ADDRESS), or leave it out for a private one"
        )


def _answer_to_http(connection: socket.socket) -> str | None:
    """What is wrong with a server that speaks HTTP/1, as a dashboard does and no cluster."""
    connection.settimeout(ANSWER_S)
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    try:
        is_http = connection.recv(5) == b"HTTP/"
    except OSError:  # it waits for more, or has closed the connection: as Ray's server does
        return None
    return "an HTTP server is there, such as a dashboard's" if is_http else None


def _make_temp_dir(directory: str | None) -> None:
    """For this user alone, if it is not there."""
    if directory is None:
        return
    try:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        mode = stat.S_IMODE(os.stat(directory).st_mode)
    except OSError as error:
        raise ConfigError(f"Ray's directory {directory!r} cannot be used: {error}") from None
    if mode & 0o077:
        print(
            f"warning: Ray's directory {directory} is open to other users (mode {mode:03o}): its "
            f"logs and sockets are in it; chmod 700 closes it",
            file=sys.stderr,
        )


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or NO_NEWS[record.name] not in record.getMessage()


def _in_words(error: Exception, private: bool, arguments: Mapping[str, Any]) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    # What follows are traces, and logs that are deleted.
    reason = " ".join(BEHIND_REASON.split(plain)[0].split())[:300].rstrip(" .")
    reason = reason or type(error).__name__
    if not private:
        return (
            f"the Ray cluster at {arguments['address']} cannot be joined: {reason}; check the "
            f"address (ray.address or RAY_ADDRESS), or leave it out for a private one"
        )
    return (
        f"Ray does not start on this machine: {reason}; if it is busy, try again, and see that "
        f"{arguments.get('_temp_dir') or tempfile.gettempdir()} has room"
    )


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Ray and its native code put handlers of their own in the place of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def _quiet_start() -> Iterator[None]:
    """What Ray's processes and native code write on standard error while it starts is left out:
    if it fails, the error says why."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
