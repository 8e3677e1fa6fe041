"""GGUF files as transformers' configuration, tensors and tokenizer; needs the package `gguf`.

Quantised tensors become float32: what llama.cpp runs, but for its rounding of activations.

Axes: h head, d head dim.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhc_model.conversion.families import family_of
from mhc_model.conversion.gguf_head import check_head
from mhc_model.conversion.gguf_metadata import INTERLEAVED, Metadata, config_entries
from mhc_model.conversion.gguf_tokenizer import gguf_tokenizer
from mhc_model.conversion.state_dicts import check_stored
from mhc_model.errors import CheckpointError
from mhc_model.files import Stored
from mhc_model.tokenizer import FastTokenizer

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
OUTSIDE = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FREQUENCIES = "rope_freqs.weight"  # factors of the rotation, as Llama 3.1 has them


@dataclass(frozen=True)
class GGUFModel:
    """What a file holds, by transformers' names."""

    entries: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: FastTokenizer | None


def read_gguf(path: Path) -> GGUFModel:
    """Reads and dequantises a file.

    Raises:
        CheckpointError: naming the file and the key or tensor; also without the package `gguf`.
    """
    reader = _open(path)
    metadata = Metadata(_contents(reader, path), str(path))
    entries = config_entries(metadata)
    found = _by_key(reader, path)
    embedding = OUTSIDE[EMBEDDING]
    if embedding not in found:
        raise CheckpointError(f"{path} lacks the tensor {EMBEDDING!r}")
    entries["vocab_size"] = _shape(found[embedding])[0]
    entries["tie_word_embeddings"] = OUTSIDE[HEAD] not in found
    # Sizes before tensors: these take eight times their room in the file and more.
    family = family_of(entries, str(path))
    stored = {key: Stored(_shape(tensor), "F32") for key, tensor in found.items()}
    check_stored(family, family.model_config(entries, str(path)), stored, lambda key: str(path))
    tokenizer = gguf_tokenizer(metadata, entries["vocab_size"])
    tensors = {key: _dequantise(tensor, path) for key, tensor in found.items()}
    if INTERLEAVED[entries["model_type"]]:
        for key, heads in _turned(entries, tensors).items():
            tensors[key] = to_half_split(tensors[key], heads)
    return GGUFModel(entries, tensors, tokenizer)


def to_half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows (h d) whose pairs are neighbours -> rows whose pairs are half a head apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def tensor_key(name: str) -> str | None:
    """transformers' key of a tensor in a GGUF file; None if there is none."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    match name.split("."):
        case ["blk", index, part, "weight"] if part in INSIDE and index.isdecimal():
            return f"model.layers.{index}.{INSIDE[part]}.weight"
    return None


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(
            f"{path} needs the package gguf: run `pip install 'mhc-gates[gguf]'`"
        ) from None
    check_head(path)
    try:
        return GGUFReader(path)
    except (ValueError, LookupError, OSError, TypeError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path} is not a readable GGUF file: {error}") from None


def _contents(reader: Any, path: Path) -> dict[str, Any]:
    values = {}
    for name, entry in reader.fields.items():
        try:
            values[name] = entry.contents()
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{path}: the entry {name!r} cannot be read: {error}") from None
    return values


def _by_key(reader: Any, path: Path) -> dict[str, Any]:
    """transformers' key -> tensor as the package has it."""
    found: dict[str, Any] = {}
    for tensor in reader.tensors:
        if tensor.name == FREQUENCIES:
            if np.any(_dequantise(tensor, path).numpy() != 1.0):
                raise CheckpointError(
                    f"{path}: the rotary embedding is scaled (the tensor {FREQUENCIES!r}); "
                    f"supported: none"
                )
            continue
        key = tensor_key(tensor.name)
        if key is None:
            raise CheckpointError(f"{path} has the tensor {tensor.name!r}, which is not known")
        if key in found:
            raise CheckpointError(f"{path} has the tensor {tensor.name!r} twice")
        found[key] = tensor
    return found


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _dequantise(tensor: Any, path: Path) -> Tensor:
    from gguf.quants import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(values.reshape(_shape(tensor)).copy())
    except (NotImplementedError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {tensor.name!r} cannot be read: {error}") from None


def _turned(entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Keys of the query and key matrices -> their heads."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    return {
        key: int(entries[heads[part]])
        for key in tensors
        for part in heads
        if key.endswith(f"self_attn.{part}.weight")
    }
