"""mHC transformers whose routing is an argument: model, gates, checkpoints, generation."""

from mhc_model.checkpoint.directory import (
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mhc_model.config import MHCConfig, ModelConfig
from mhc_model.decoder.decoder import Decoder
from mhc_model.engine.engine import Engine
from mhc_model.engine.request import Completion, Request, SamplingParams
from mhc_model.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    GateError,
    MHCError,
)
from mhc_model.gates import expand_gates
from mhc_model.generation import generate
from mhc_model.streams.sinkhorn import SinkhornKnopp, doubly_stochastic_error, sinkhorn_knopp

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "DataError",
    "Decoder",
    "Engine",
    "EngineError",
    "GateError",
    "MHCConfig",
    "MHCError",
    "ModelConfig",
    "Request",
    "SamplingParams",
    "SinkhornKnopp",
    "doubly_stochastic_error",
    "expand_gates",
    "find_checkpoint",
    "generate",
    "load_checkpoint",
    "save_checkpoint",
    "sinkhorn_knopp",
]
