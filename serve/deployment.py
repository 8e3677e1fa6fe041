"""The Ray Serve application: replicas of an engine behind one HTTP port.

`build` takes settings, so that a Serve configuration file can name it (`serve deploy`):

    applications:
      - name: mhc-gates
        import_path: serve.deployment:build
        args: {checkpoint: runs/demo/mhc}

configs/serve_app.yaml is a whole one.
"""

# No `from __future__ import annotations`: Serve reads the type of build's argument from the
# annotation itself.

from typing import Any, cast

import ray.serve
import torch
from fastapi import FastAPI
from prometheus_client.core import Metric
from ray.serve import Application, Deployment

from mhc_model.engines import load_engine
from mhc_model.errors import EngineError
from mhc_model.policy import GatePolicy
from serve.app import create_app
from serve.auth import ApiKeys, load_keys
from serve.basics import JsonLog
from serve.completions import ChatTemplate, ModelCard
from serve.monitoring import AccessLog, Observer, Observers, ReplicaMetrics, exposition
from serve.service import CompletionService
from serve.settings import ServeSettings

DEPLOYMENT = "completions"
# A replica that does not tell its metrics by then is left out of the answer.
METRICS_TIMEOUT_S = 2.0


def load_service(settings: ServeSettings, observer: Observer) -> CompletionService:
    """Loads checkpoint and policy into this process.

    Raises:
        CheckpointError, ConfigError: if they cannot be read or do not fit each other.
    """
    torch.set_num_threads(settings.cpus_per_replica)
    engine = load_engine(
        settings.engine,
        settings.checkpoint,
        max_batch=settings.max_batch,
        max_seq_len=settings.max_seq_len,
        device="cuda" if settings.gpus_per_replica > 0 else "cpu",
        dtype=None if settings.dtype is None else getattr(torch, settings.dtype),
        **settings.engine_options,
    )
    policy = None if settings.policy is None else GatePolicy.load(settings.policy)
    return CompletionService(
        engine,
        settings.served_name,
        settings.max_queue,
        policy,
        aliases=[settings.checkpoint],
        chat_template=ChatTemplate.load(settings.chat_template, settings.checkpoint),
        request_timeout_s=settings.request_timeout_s,
        observer=observer,
        stall_s=settings.stall_s,
    )


@ray.serve.deployment(name=DEPLOYMENT)
@ray.serve.ingress()  # no app yet: __serve_build_asgi_app__ gives it once the model is loaded
class CompletionServer:
    """One replica: one engine, its thread and the HTTP routes."""

    def __init__(self, settings: ServeSettings, keys: ApiKeys) -> None:
        context = ray.serve.get_replica_context()
        self.application = context.app_name
        self.keys = keys
        self.replica_metrics = ReplicaMetrics(context.replica_id.unique_id)
        log = AccessLog(JsonLog(settings.access_log))
        self.recursive = settings.recursive
        self.origins = settings.cors_origins
        self.service = load_service(settings, Observers(self.replica_metrics, log))

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve ends it when the last request has ended, or at drain_s.
        return create_app(
            self.service,
            keys=self.keys,
            metrics=self.metrics,
            recursive=self.recursive,
            origins=self.origins,
        )

    async def metrics(self) -> bytes:
        """Prometheus's text format, of all replicas."""
        handle = ray.serve.get_deployment_handle(DEPLOYMENT, self.application)
        answers = await handle.broadcast("collect_metrics").results_async(
            timeout_s=METRICS_TIMEOUT_S, return_exceptions=True
        )
        return exposition([answer for answer in answers if isinstance(answer, list)])

    def describe(self) -> ModelCard:
        """The served model, for the command's announcement."""
        return self.service.card

    def collect_metrics(self) -> list[Metric]:
        """The metrics of this replica."""
        return self.replica_metrics.collect()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises."""
        if self.service.failure is not None:
            raise EngineError(self.service.failure)


def build(settings: ServeSettings) -> Application:
    """The application for `ray.serve.run` or a Serve configuration file.

    The API keys are read here, once; replicas get their digests.

    Raises:
        ConfigError: if the keys cannot be read.
    """
    deployment = cast(Deployment, CompletionServer).options(**deployment_options(settings))
    return deployment.bind(settings, load_keys(settings.api_keys_file))


def deployment_options(settings: ServeSettings) -> dict[str, Any]:
    """What Serve is told about the deployment."""
    options: dict[str, Any] = {
        "max_ongoing_requests": settings.ongoing_limit,
        "health_check_period_s": settings.health_check_s,
        "health_check_timeout_s": settings.health_check_timeout_s,
        "graceful_shutdown_timeout_s": settings.drain_s,
        "graceful_shutdown_wait_loop_s": min(1.0, settings.drain_s),
        "ray_actor_options": {
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": settings.gpus_per_replica,
        },
    }
    if settings.max_replicas is None:
        return options | {"num_replicas": settings.replicas}
    scaling = {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.target_ongoing_requests or settings.max_batch,
        "upscale_delay_s": settings.upscale_delay_s,
        "downscale_delay_s": settings.downscale_delay_s,
    }
    return options | {"autoscaling_config": scaling}
