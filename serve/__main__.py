"""`python -m serve --checkpoint DIR [--policy DIR] [--port 8000]`: the model over HTTP.

Runs until SIGINT or SIGTERM, then ends Serve and, if it started one, the Ray cluster.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from mhc_model.checkpoint import checkpoint_hash, find_checkpoint
from mhc_model.errors import ConfigError, MHCError
from mhc_model.policy import GatePolicy
from mhc_model.settings import parse_command_line
from mhc_model.tokenizer import FAST_FILE
from serve.service import check_policy
from serve.settings import ServeSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    try:
        settings = parse_command_line(ServeSettings, "python -m serve", __doc__ or "", argv)
        settings = check_settings(settings)
        # Ray reads the authentication mode while it is imported, so this comes first.
        ray_arguments = settings.ray.init_arguments()
        from serve.launch import launch

        launch(settings, ray_arguments)
    except MHCError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check_settings(settings: ServeSettings) -> ServeSettings:
    """Finds what is wrong before Ray is started, which takes seconds.

    Returns:
        The settings with absolute paths: replicas may run in another directory.

    Raises:
        CheckpointError, ConfigError: naming the value and the fix.
    """
    directory = find_checkpoint(settings.checkpoint)
    if not (directory / FAST_FILE).exists():
        raise ConfigError(f"checkpoint {directory} has no tokenizer; save it with one to serve it")
    if settings.policy is not None:
        check_policy(GatePolicy.load(settings.policy), checkpoint_hash(directory))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
                f"give another --port or --host"
            ) from None
    return settings.model_copy(
        update={
            "checkpoint": str(directory.resolve()),
            "policy": None if settings.policy is None else str(Path(settings.policy).resolve()),
            "model_name": settings.served_name,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
