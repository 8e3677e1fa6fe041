"""A pretrained model as a checkpoint of ours, plain or with mHC streams.

The streams start as copies of one another, H_post is 1, H_res is doubly stochastic and H_pre sums
to 1: whatever a sublayer reads, writes and passes on is what it was, so the converted model equals
the original whatever its gates. It can learn all the same: each sublayer reads another stream more
than the others, so the gradients of H_post differ, and after one step so do the streams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mhc_model.checkpoint import (
    Checkpoint,
    cast_matrices,
    is_own,
    load_checkpoint,
    save_checkpoint,
    with_tensors,
)
from mhc_model.config import PRESETS, MHCConfig, ModelConfig
from mhc_model.conversion.families import family_of
from mhc_model.conversion.sources import Source, read_source
from mhc_model.conversion.state_dicts import from_transformers
from mhc_model.decoder import Decoder
from mhc_model.errors import ConfigError
from mhc_model.settings import validate_settings

DEFAULT_STREAMS = 4


def convert(
    source: str | Path,
    out: str | Path,
    streams: int | None = None,
    preset: str = "default",
    *,
    mhc: Mapping[str, Any] | None = None,
    max_seq_len: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Writes the checkpoint of a pretrained model.

    Args:
        source: what `read_source` takes; or a model of ours, as we or transformers saved it.
        out: the checkpoint directory to create.
        streams: 2 to 8; 0 keeps the model plain. None is 4, or what a model of ours has.
        preset: of the hyper-connections, a name in `PRESETS`.
        mhc: other values of `MHCConfig`, such as {"projection": "identity"}.
        max_seq_len: a shorter context than the original's, for smaller tables and caches.
        dtype: of the matrices; None keeps the source's.
        overwrite: replace an existing checkpoint.

    Returns:
        The checkpoint, loaded from `out`.

    Raises:
        CheckpointError: naming file and key, if the source is not what it should be.
        ConfigError: for streams or a preset that cannot be equal to the original.
    """
    if streams == 0 and mhc:
        raise ConfigError(f"streams is 0, a plain model, which has no {', '.join(mhc)}")
    if is_own(source):
        if mhc:
            raise ConfigError(f"{source} is a model of ours: it keeps its {', '.join(mhc)}")
        return _save_again(Path(source), Path(out), streams, max_seq_len, dtype, overwrite)
    streams = DEFAULT_STREAMS if streams is None else streams
    connections = None if streams == 0 else equal_at_init(preset, streams, mhc)
    found = read_source(source)
    model = build(found, connections, max_seq_len)
    if dtype is not None:
        cast_matrices(model, dtype)
    metadata = {"converted_from": {"source": found.name, "family": found.entries["model_type"]}}
    save_checkpoint(out, model, found.tokenizer, metadata, overwrite)
    return load_checkpoint(out)


def _save_again(
    source: Path,
    out: Path,
    streams: int | None,
    max_seq_len: int | None,
    dtype: torch.dtype | None,
    overwrite: bool,
) -> Checkpoint:
    """A model of ours as a checkpoint of ours: its streams are what it has learned, and stay."""
    loaded = load_checkpoint(source)
    model, own = loaded.model, loaded.model.config.mhc
    there = 0 if own is None else own.n_streams
    if streams not in (None, there):
        raise ConfigError(
            f"{source} is a model of ours with {there} streams; it keeps them: leave streams out"
        )
    if max_seq_len is not None:
        tensors = model.state_dict()
        config = _shorter(model.config, max_seq_len)
        if config.positions == "learned":
            tensors["position_embedding.weight"] = model.position_embedding.weight[:max_seq_len]
        model = with_tensors(config, {name: value.detach() for name, value in tensors.items()})
    if dtype is not None:
        cast_matrices(model, dtype)
    metadata = loaded.metadata or {"converted_from": {"source": str(source)}}
    save_checkpoint(out, model, loaded.tokenizer, metadata, overwrite)
    return load_checkpoint(out)


def build(source: Source, mhc: MHCConfig | None = None, max_seq_len: int | None = None) -> Decoder:
    """The decoder with a source's weights, in their dtype; hyper-connections as at init.

    Raises:
        CheckpointError, ConfigError: as `convert`.
    """
    family = family_of(source.entries, str(source.config_file))
    config = family.model_config(source.entries, str(source.config_file))
    state = from_transformers(family, config, source.tensors, source.file_of)
    config = config.model_copy(update={"mhc": mhc})
    if max_seq_len is not None:
        config = _shorter(config, max_seq_len)
        if config.positions == "learned":
            state["position_embedding.weight"] = state["position_embedding.weight"][:max_seq_len]
    if mhc is not None:
        state["stream_embedding"] = torch.zeros(mhc.n_streams, config.d_model)
        if mhc.mixes:
            gate = math.log(mhc.gate_init / (1.0 - mhc.gate_init))
            state["gate_logits"] = torch.full((config.n_gates,), gate)
    return with_tensors(config, state)


def _shorter(config: ModelConfig, max_seq_len: int) -> ModelConfig:
    if not 1 <= max_seq_len <= config.max_seq_len:
        raise ConfigError(
            f"max_seq_len is {max_seq_len}; the original allows 1 to {config.max_seq_len}"
        )
    return config.model_copy(update={"max_seq_len": max_seq_len})


def equal_at_init(preset: str, streams: int, mhc: Mapping[str, Any] | None = None) -> MHCConfig:
    """The preset with identical streams and an H_pre that sums to 1.

    A norm removes the scale of what a sublayer reads only as far as its epsilon is negligible; with
    Llama's 1e-5 it is not. So H_pre keeps the preset's proportions and loses its scale.

    Raises:
        ConfigError: for an unknown preset, one whose projections are not zero, or a number of
            streams that it does not allow.
    """
    values = {"preset": preset, "n_streams": streams, **(mhc or {}), "stream_embedding_std": 0.0}
    found = validate_settings(MHCConfig, values, "convert")
    if found.projection_std > 0.0:
        raise ConfigError(
            f"the preset {preset!r} has random projections (projection_std "
            f"{found.projection_std}): it is not the original at init; take another of "
            f"{', '.join(PRESETS)}"
        )
    own, others = (1.0 / (1.0 + math.exp(-b)) for b in (found.pre_own, found.pre_others))
    total = own + (streams - 1) * others
    scaled = [math.log(p / (1.0 - p)) for p in (own / total, others / total)]
    return found.model_copy(update={"pre_own": scaled[0], "pre_others": scaled[1]})
