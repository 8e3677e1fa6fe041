from .checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from .config import MHCConfig, ModelConfig
from .decoder import Decoder
from .engine import Completion, Engine, Request, SamplingParams
from .errors import CheckpointError, ConfigError, DataError, EngineError, GateError, MHCError
from .gates import expand_gates
from .generation import generate
from .sinkhorn import SinkhornKnopp, doubly_stochastic_error, sinkhorn_knopp

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
