"""Configuration of the server: `python -m serve` and the Ray Serve application."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mhc_model.settings import RaySettings, Settings


class ServeSettings(Settings):
    """What is served, where, and on how much of the machine."""

    checkpoint: str = Field(description="checkpoint or run directory; its newest checkpoint")
    policy: str | None = Field(
        None, description='exported gate policy; requests may then ask for gates "policy"'
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is every interface")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    model_name: str | None = Field(
        None, min_length=1, description="name of the model in the API; none: the directory's name"
    )
    replicas: int = Field(1, ge=1, description="engine replicas behind the port")
    cpus_per_replica: int = Field(1, ge=1, description="CPUs reserved and torch threads used")
    gpus_per_replica: float = Field(
        0.0, ge=0.0, description="GPUs reserved, may be a fraction; 0 runs on the CPU"
    )
    max_batch: int = Field(32, ge=1, description="prompts that a replica decodes at a time")
    max_queue: int = Field(
        256, ge=0, description="prompts that may wait in a replica; further ones get a 429"
    )
    ray: RaySettings = Field(RaySettings.model_validate({}), description="where Ray runs")

    @property
    def served_name(self) -> str:
        """What requests call the model."""
        return self.model_name or Path(self.checkpoint).resolve().name
