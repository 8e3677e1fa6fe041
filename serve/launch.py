"""The driver: starts Ray and Serve, says where the server is, and ends both when told to stop.

A stop has two steps: the application is removed, so that new requests get a 503 while accepted ones
are finished, up to `drain_s`; then Serve and, if it is ours, the cluster end. A second signal skips
the rest of the first step.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray.serve
from ray.serve.schema import LoggingConfig

from mhc_model.errors import ConfigError, EngineError
from mhc_model.gates import allowed_gates
from mhc_model.running import doing, leave_the_rest, on_stop, ray_cluster, stop_signals
from serve.auth import load_keys
from serve.completions import ModelCard
from serve.deployment import build
from serve.proxy import proxy_environment
from serve.settings import ServeSettings

APPLICATION = "mhc-gates"
# What Serve takes to end replicas that have nothing to do.
STOP_S = 10.0


def launch(settings: ServeSettings, ray_arguments: Mapping[str, Any]) -> None:
    """Serves until SIGINT or SIGTERM, then ends what it started.

    On a cluster of its own that is Serve and the cluster; on a shared one, this application.

    Args:
        settings: checked, with absolute paths.
        ray_arguments: keyword arguments of `ray.init`.

    Raises:
        ConfigError: if the cluster is smaller than the replicas need.
        EngineError: if a replica fails to start.
    """
    with _interrupted_by_signals():
        try:
            private = ray_arguments["address"] == "local"
            if private and settings.metrics_port is not None:
                ray_arguments = {**ray_arguments, "_metrics_export_port": settings.metrics_port}
            with ray_cluster(ray, ray_arguments):
                try:
                    _serve(settings, private)
                finally:
                    _ignore_signals()  # a second Ctrl-C would leave processes behind
        except KeyboardInterrupt:
            pass


def _serve(settings: ServeSettings, private: bool) -> None:
    if private:
        _check_resources(settings)
    else:  # others stay on this cluster: what is begun has to be taken back
        on_stop("the application is removed from the cluster", STOP_S + settings.drain_s)
    try:
        with doing(f"starting {settings.replicas} replicas, which load the model"):
            _deploy(settings)
        _announce(settings)
        on_stop(
            f"no new requests; those under way are finished, for up to {settings.drain_s:g} s. "
            f"A second signal ends them",
            settings.drain_s + 2 * STOP_S,
        )
        threading.Event().wait()
    except KeyboardInterrupt:
        _drain(settings)
        if private:
            leave_the_rest()
            ray.serve.shutdown()
        raise
    except BaseException:
        _drain(settings)
        if private:
            ray.serve.shutdown()
        raise


def _drain(settings: ServeSettings) -> None:
    """Removes the application; returns when what it had accepted is done, or `drain_s` is over."""
    try:
        if APPLICATION in ray.serve.status().applications:
            ray.serve.delete(APPLICATION, _blocking=False)
        # Serve ends the replicas itself at drain_s.
        deadline = time.monotonic() + settings.drain_s + STOP_S
        while APPLICATION in ray.serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        _ignore_signals()


def _deploy(settings: ServeSettings) -> None:
    """Returns once the replicas answer."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    ray.serve.start(
        http_options={"host": settings.host, "port": settings.port},
        logging_config=quiet,
        controller_options={
            "runtime_env": {
                "env_vars": proxy_environment(settings.request_timeout_s, settings.access_log)
            }
        },
    )
    try:
        ray.serve.run(build(settings), name=APPLICATION, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:  # Serve's own, with the replica's traceback in it
        raise EngineError(f"no replica started, its traceback is above: {error}") from None


def _check_resources(settings: ServeSettings) -> None:
    """Serve would wait without end for CPUs that a private cluster, unlike others, never gets."""
    there = ray.cluster_resources()
    for resource, each, flag in (
        ("CPU", settings.cpus_per_replica, "--cpus-per-replica"),
        ("GPU", settings.gpus_per_replica, "--gpus-per-replica"),
    ):
        wanted = each * settings.replicas
        if wanted > there.get(resource, 0.0):
            raise ConfigError(
                f"{settings.replicas} replicas need {wanted:g} {resource}s, this machine has "
                f"{there.get(resource, 0.0):g}; lower --replicas or {flag}"
            )


def _announce(settings: ServeSettings) -> None:
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
    url = f"http://{host}:{settings.port}"
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30):
            pass
    except OSError as error:
        raise EngineError(
            f"{url} does not answer ({error}); if Serve already ran on this cluster, it kept its "
            f"own host and port: give the same"
        ) from None
    card = ray.serve.get_app_handle(APPLICATION).describe.remote().result(timeout_s=30)
    print(f"serving {card.id} at {url}")
    print(f"  checkpoint {card.checkpoint}")
    print(f"  gates: {_describe_gates(card)}")
    example: dict[str, object] = {"prompt": "Question:", "max_tokens": 16, "temperature": 0}
    if card.n_gates:
        example["gates"] = 0.5
    key = '-H "Authorization: Bearer $KEY" ' if load_keys(settings.api_keys_file) else ""
    print(
        f"  curl {url}/v1/completions {key}-H 'Content-Type: application/json' "
        f"-d '{json.dumps(example)}'",
        flush=True,
    )


def _describe_gates(card: ModelCard) -> str:
    if card.learned_gates is None:
        return "none, this model takes no gates"
    low, high = min(card.learned_gates), max(card.learned_gates)
    names = [*(["policy"] if card.policy else []), *(each.name for each in card.behaviours)]
    listed = "".join(f', "{name}"' for name in names)
    return (
        f'"learned" ({low:.3f} to {high:.3f}){listed}, or numbers, {allowed_gates(card.n_layers)}'
    )


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Within, the signals that say stop raise KeyboardInterrupt in the main thread."""
    before = {number: signal.getsignal(number) for number in stop_signals()}
    _interrupt_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_on_signals() -> None:
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler)


def _ignore_signals() -> None:
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
