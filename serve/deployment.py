"""The Ray Serve application: replicas of an engine behind one HTTP port.

`build` takes settings, so that a Serve configuration file can name it (`serve deploy`):

    applications:
      - name: mhc-gates
        import_path: serve.deployment:build
        args: {checkpoint: runs/demo/mhc}
"""

# No `from __future__ import annotations`: Serve reads the type of build's argument from the
# annotation itself.

from typing import cast

import ray.serve
import torch
from fastapi import FastAPI
from ray.serve import Application, Deployment

from mhc_model.engine import Engine
from mhc_model.errors import EngineError
from mhc_model.policy import GatePolicy
from serve.app import create_app
from serve.service import CompletionService
from serve.settings import ServeSettings

# Calls that a replica may hold beyond its own queue: it answers these with a 429 at once. Without
# the headroom they would wait in Serve's proxy, where nobody tells the client.
REFUSAL_HEADROOM = 1000


def load_service(settings: ServeSettings) -> CompletionService:
    """Loads checkpoint and policy into this process.

    Raises:
        CheckpointError, ConfigError: if they cannot be read or do not fit each other.
    """
    torch.set_num_threads(settings.cpus_per_replica)
    engine = Engine.from_checkpoint(
        settings.checkpoint,
        max_batch=settings.max_batch,
        device="cuda" if settings.gpus_per_replica > 0 else "cpu",
    )
    policy = None if settings.policy is None else GatePolicy.load(settings.policy)
    return CompletionService(
        engine, settings.served_name, settings.max_queue, policy, aliases=[settings.checkpoint]
    )


@ray.serve.deployment(name="completions")
@ray.serve.ingress()  # no app yet: __serve_build_asgi_app__ gives it once the model is loaded
class CompletionServer:
    """One replica: one engine, its thread and the HTTP routes."""

    def __init__(self, settings: ServeSettings) -> None:
        self.service = load_service(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.service)

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises."""
        if self.service.failure is not None:
            raise EngineError(self.service.failure)


def build(settings: ServeSettings) -> Application:
    """The application for `ray.serve.run` or a Serve configuration file."""
    deployment = cast(Deployment, CompletionServer).options(
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_batch + settings.max_queue + REFUSAL_HEADROOM,
        ray_actor_options={
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": settings.gpus_per_replica,
        },
    )
    return deployment.bind(settings)
