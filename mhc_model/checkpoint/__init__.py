"""A model on disk, whole or not at all.

In: a model and its tokenizer, or a path. Out: a checkpoint directory that transformers, vLLM,
lm-eval and our engine read alike, or the model of one, its hashes verified. May import the ground,
tokenizer, streams and decoder.

    directory.py    `save_checkpoint`, `load_checkpoint`, `find_checkpoint`: files and hashes
    remote_code.py  what lets transformers load the directory
    validate.py     `validate_model`: is it whole, and does it work
"""

from mhc_model.checkpoint.directory import (
    MANIFEST,
    Checkpoint,
    cast_matrices,
    checkpoint_hash,
    checkpoint_tokenizer,
    find_checkpoint,
    load_checkpoint,
    read_model_config,
    save_checkpoint,
    stored_dtype,
    verified_manifest,
)
from mhc_model.checkpoint.remote_code import MODEL_TYPE, shape_entries
from mhc_model.checkpoint.validate import Check, validate_model

__all__ = [
    "MANIFEST",
    "MODEL_TYPE",
    "Check",
    "Checkpoint",
    "cast_matrices",
    "checkpoint_hash",
    "checkpoint_tokenizer",
    "find_checkpoint",
    "load_checkpoint",
    "read_model_config",
    "save_checkpoint",
    "shape_entries",
    "stored_dtype",
    "validate_model",
    "verified_manifest",
]
