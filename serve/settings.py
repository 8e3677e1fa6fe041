"""Configuration of the server: `python -m serve` and the Ray Serve application."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mhc_model.config import EngineKind
from mhc_model.settings import RaySettings, Settings

# Calls that a replica may hold beyond its own queue: it answers these with a 429 at once. Without
# the headroom they would wait in Serve's proxy, where nobody tells the client.
REFUSAL_HEADROOM = 1000


class RecursiveSettings(Settings):
    """What a server lets sessions over long texts do."""

    max_sessions: int = Field(
        4, ge=1, description="sessions of a replica at a time; further ones get a 429"
    )
    max_text_chars: int = Field(2_000_000, ge=1, description="characters of one text")
    max_budget_tokens: int = Field(
        262_144, ge=1, description="most tokens that a request may give its session"
    )
    endpoints: tuple[str, ...] = Field(
        (),
        description="addresses of OpenAI-compatible servers that a request may name as its model; "
        "none: sessions only use the served model. Give exact base URLs: whoever may call this "
        "server makes it call those",
    )


class ServeSettings(Settings):
    """What is served, where, and on how much of the machine."""

    checkpoint: str = Field(description="checkpoint or run directory; its newest checkpoint")
    policy: str | None = Field(
        None, description='exported gate policy; requests may then ask for gates "policy"'
    )
    model_name: str | None = Field(
        None, min_length=1, description="name of the model in the API; none: the directory's name"
    )
    chat_template: str | None = Field(
        None, description="Jinja2 file for conversations; none: the checkpoint's, or a plain one"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is every interface")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    api_keys_file: str | None = Field(
        None,
        description="file of API keys, one a line; with keys (also from MHC_API_KEYS) every route "
        "but /health, /ready and the page asks for one",
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="origins of web pages elsewhere that may call this server from a browser, such "
        'as "http://localhost:3000"; "*" lets all; none: only the server\'s own page',
    )
    engine: EngineKind = Field(
        "torch", description="what decodes: this project's engine, or vLLM (docs/vllm.md)"
    )
    max_batch: int = Field(32, ge=1, description="samples that a replica decodes at a time")
    max_seq_len: int | None = Field(
        None, ge=1, description="most tokens of a prompt and its completion; none: the model's"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of the weights; none: as in the checkpoint"
    )
    kv_cache_bytes: int | None = Field(
        None, ge=1, description="bytes of keys and values of a replica; none: the engine's default"
    )
    prefix_cache_bytes: int | None = Field(
        None,
        ge=0,
        description="bytes kept for prompts seen before; 0 keeps none, none: the engine's default",
    )
    prefill_chunk: int | None = Field(
        None,
        ge=1,
        description="prompt tokens read in one step beside decoding; none: the engine's default",
    )
    cuda_graphs: bool = Field(
        False, description="record the decoding step on a GPU; slower to start, faster after"
    )
    max_queue: int = Field(
        256, ge=0, description="samples that may wait in a replica; further ones get a 429"
    )
    request_timeout_s: float = Field(
        600.0, gt=0.0, description="seconds that a request may take in all; then it gets a 504"
    )
    replicas: int = Field(1, ge=1, description="engine replicas behind the port")
    max_replicas: int | None = Field(
        None, ge=1, description="autoscaling from `replicas` to this many; none: a fixed number"
    )
    target_ongoing_requests: float | None = Field(
        None,
        gt=0.0,
        description="autoscaling: requests under way that a replica should have; none: max_batch",
    )
    upscale_delay_s: float = Field(
        10.0, ge=0.0, description="autoscaling: seconds of high load before a replica is added"
    )
    downscale_delay_s: float = Field(
        300.0, ge=0.0, description="autoscaling: seconds of low load before a replica is stopped"
    )
    max_ongoing_requests: int | None = Field(
        None,
        ge=1,
        description="requests that Serve gives a replica; none: its rows, its queue and as many "
        f"as {REFUSAL_HEADROOM} to refuse",
    )
    cpus_per_replica: int = Field(1, ge=1, description="CPUs reserved and torch threads used")
    gpus_per_replica: float = Field(
        0.0, ge=0.0, description="GPUs reserved, may be a fraction; 0 runs on the CPU"
    )
    health_check_s: float = Field(
        2.0, gt=0.0, description="seconds between health checks; a dead replica is noticed then"
    )
    health_check_timeout_s: float = Field(
        5.0,
        gt=0.0,
        description="seconds that a health check may take; after three in a row without an answer "
        "the replica is replaced",
    )
    stall_s: float = Field(
        120.0,
        gt=0.0,
        description="seconds that a step of the engine may take; then the replica is replaced",
    )
    drain_s: float = Field(
        60.0, gt=0.0, description="seconds that accepted requests may take after a stop"
    )
    access_log: str = Field(
        "stderr",
        min_length=1,
        description='where each request gets a line of JSON: "stderr", "stdout", "off" or a file',
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of Ray's own metrics on a private cluster; the service's are at /metrics",
    )
    recursive: RecursiveSettings = Field(
        RecursiveSettings.model_validate({}), description="limits of sessions over long texts"
    )
    ray: RaySettings = Field(RaySettings.model_validate({}), description="where Ray runs")

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, below replicas {self.replicas}; give at "
                f"least {self.replicas}, or leave it out for a fixed number"
            )
        if self.max_replicas is None and self.target_ongoing_requests is not None:
            raise ValueError(
                "target_ongoing_requests is for autoscaling; give max_replicas, or leave it out"
            )
        if self.cuda_graphs and not self.gpus_per_replica:
            raise ValueError("cuda_graphs needs a GPU; give gpus_per_replica, or leave it out")
        return self

    @property
    def served_name(self) -> str:
        """What requests call the model."""
        return self.model_name or Path(self.checkpoint).resolve().name

    @property
    def ongoing_limit(self) -> int:
        """Requests that Serve gives a replica at a time."""
        if self.max_ongoing_requests is not None:
            return self.max_ongoing_requests
        return self.max_batch + self.max_queue + REFUSAL_HEADROOM

    @property
    def engine_options(self) -> dict[str, Any]:
        """Arguments of the engine that are not left to its own defaults."""
        options = {
            "kv_cache_bytes": self.kv_cache_bytes,
            "prefix_cache_bytes": self.prefix_cache_bytes,
            "prefill_chunk": self.prefill_chunk,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return {"cuda_graphs": self.cuda_graphs, **given}
