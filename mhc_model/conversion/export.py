"""A checkpoint of ours as transformers' own class has it, without our code.

Their classes have no streams. A converted model whose streams are still as they started is the
original, and its tensors come back bit for bit. Once the streams have learned, leaving them out
gives another model, which must be asked for.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from mhc_model.checkpoint import WEIGHTS, load_checkpoint
from mhc_model.conversion.families import family_for
from mhc_model.conversion.sources import CONFIG
from mhc_model.conversion.state_dicts import to_transformers
from mhc_model.decoder import Decoder
from mhc_model.errors import CheckpointError

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def streams_as_started(model: Decoder) -> bool:
    """Whether the streams of a model are copies that nothing tells apart: the plain model."""
    if model.config.mhc is None:
        return True
    return not model.stream_embedding.any() and all(
        (connection.fn is None or not connection.fn.any())
        and torch.equal(connection.base.cpu(), connection.initial_base())
        for connection in model.stream_modules()
    )


def export(checkpoint: str | Path, out: str | Path, *, drop_streams: bool = False) -> Path:
    """Writes config.json, model.safetensors and the tokenizer for transformers' own class.

    Args:
        checkpoint: a checkpoint or run directory.
        out: the directory to create.
        drop_streams: leave out streams that have learned.

    Returns:
        `out`.

    Raises:
        CheckpointError: if `out` exists, no family has this architecture, or the streams have
            learned and `drop_streams` is not set.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists; give another directory")
    loaded = load_checkpoint(checkpoint)
    model = loaded.model
    family = family_for(model.config)
    if not drop_streams and not streams_as_started(model):
        raise CheckpointError(
            f"{loaded.path}: the streams have learned, and {family.architecture} has none: without "
            f"them it is another model; set drop_streams (--drop-streams) to leave them out"
        )
    tensors = to_transformers(family, model.config, model.state_dict())
    entries = family.config_entries(model.config)
    entries["dtype"] = DTYPE_NAMES[model.embedding.weight.dtype]
    tokenizer = loaded.tokenizer
    if tokenizer is not None:
        entries |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.eos_ids)}
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.tmp-", dir=out.parent))
    try:
        (staging / CONFIG).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        save_file(contiguous, staging / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(staging)
        staging.chmod(0o755)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out
