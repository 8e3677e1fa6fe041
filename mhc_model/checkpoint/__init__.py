"""A model on disk, whole or not at all.

In: a model and its tokenizer, or a path. Out: a checkpoint directory that transformers, vLLM,
lm-eval and our engine read alike, or the model of one, its hashes verified. May import the ground,
tokenizer, streams and decoder.

    directory.py    `save_checkpoint`, `load_checkpoint`
    found.py        which directory a path means, its manifest and hash
    weights.py      safetensors files: what is stored, by their heads
    shapes.py       stored tensors against a configuration; the model that holds them
    remote_code.py  what lets transformers load the directory
    validate.py     `validate_model`: is it whole, and does it work
"""

from mhc_model.checkpoint.directory import (
    Checkpoint,
    cast_matrices,
    checkpoint_tokenizer,
    load_checkpoint,
    read_model_config,
    save_checkpoint,
    stored_dtype,
)
from mhc_model.checkpoint.found import (
    MANIFEST,
    checkpoint_hash,
    find_checkpoint,
    is_own,
    is_saved,
    verified_manifest,
)
from mhc_model.checkpoint.remote_code import (
    MODEL_TYPE,
    config_entries,
    shape_entries,
    write_remote_code,
)
from mhc_model.checkpoint.shapes import PREFIX, state_shapes, unfilled, with_tensors
from mhc_model.checkpoint.validate import Check, validate_model
from mhc_model.checkpoint.weights import INDEX, WEIGHTS, Weights, find_weights

__all__ = [
    "INDEX",
    "MANIFEST",
    "MODEL_TYPE",
    "PREFIX",
    "WEIGHTS",
    "Check",
    "Checkpoint",
    "Weights",
    "cast_matrices",
    "checkpoint_hash",
    "checkpoint_tokenizer",
    "config_entries",
    "find_checkpoint",
    "find_weights",
    "is_own",
    "is_saved",
    "load_checkpoint",
    "read_model_config",
    "save_checkpoint",
    "shape_entries",
    "state_shapes",
    "stored_dtype",
    "unfilled",
    "validate_model",
    "verified_manifest",
    "with_tensors",
    "write_remote_code",
]
