"""GGUF files as transformers' configuration, tensors and tokenizer; needs the package `gguf`.

Quantised tensors become float32: what llama.cpp runs, but for its rounding of activations.

Axes: h head, d head dim.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from mhc_model.errors import CheckpointError
from mhc_model.tokenizer import CONFIG_FILE, FAST_FILE, GPT2_PATTERN, FastTokenizer

# transformers' entry <- metadata, after the architecture's name.
ENTRIES = {
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
OPTIONAL = {"head_dim": "attention.key_length", "rope_theta": "rope.freq_base"}
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
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
# Architecture -> whether llama.cpp's converter put queries and keys into interleaved order.
INTERLEAVED = {"llama": True, "qwen3": False}

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
# tokenizer.ggml.pre -> the pieces within which bytes merge. Digits first, where each stands alone.
PATTERNS = {
    "gpt-2": (GPT2_PATTERN,),
    "smollm": (r"\p{N}", GPT2_PATTERN),
    "llama-bpe": (LLAMA3_PATTERN,),
    "qwen2": (QWEN2_PATTERN,),
}
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types


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
    metadata = {name: reader_field.contents() for name, reader_field in reader.fields.items()}
    entries = config_entries(metadata, str(path))
    tensors = {}
    for tensor in reader.tensors:
        key = tensor_key(tensor.name)
        if key is None:
            raise CheckpointError(f"{path} has the tensor {tensor.name!r}, which is not known")
        tensors[key] = _dequantise(tensor, path)
    embedding = OUTSIDE["token_embd.weight"]
    if embedding not in tensors:
        raise CheckpointError(f"{path} lacks the tensor 'token_embd.weight'")
    entries["vocab_size"] = len(tensors[embedding])
    entries["tie_word_embeddings"] = "lm_head.weight" not in tensors
    if INTERLEAVED[entries["model_type"]]:
        for key, heads in _turned(entries, tensors).items():
            tensors[key] = to_half_split(tensors[key], heads)
    return GGUFModel(entries, tensors, gguf_tokenizer(metadata, entries["vocab_size"], str(path)))


def to_half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows (h d) whose pairs are neighbours -> rows whose pairs are half a head apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def config_entries(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Metadata as entries of config.json, without what the tensors tell.

    Raises:
        CheckpointError: for an unknown architecture, or if an entry is missing.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in INTERLEAVED:
        raise CheckpointError(
            f"{source}: general.architecture is {architecture!r}; supported in GGUF files: "
            f"{', '.join(INTERLEAVED)}"
        )
    entries: dict[str, Any] = {"model_type": architecture}
    for entry, key in ENTRIES.items():
        if f"{architecture}.{key}" not in metadata:
            raise CheckpointError(f"{source} has no entry '{architecture}.{key}'")
        entries[entry] = metadata[f"{architecture}.{key}"]
    # Stored as float32: 1e-05 reads 9.999999747378752e-06.
    entries["rms_norm_eps"] = float(f"{entries['rms_norm_eps']:.7g}")
    for entry, key in OPTIONAL.items():
        if f"{architecture}.{key}" in metadata:
            entries[entry] = metadata[f"{architecture}.{key}"]
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        entries["rope_scaling"] = {"rope_type": scaling}
    return entries


def tensor_key(name: str) -> str | None:
    """transformers' key of a tensor in a GGUF file; None if there is none."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    match name.split("."):
        case ["blk", index, part, "weight"] if part in INSIDE and index.isdigit():
            return f"model.layers.{index}.{INSIDE[part]}.weight"
    return None


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(
            f"{path} needs the package gguf: run `pip install 'mhc-gates[gguf]'`"
        ) from None
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable GGUF file: {error}") from None


def _dequantise(tensor: Any, path: Path) -> Tensor:
    from gguf.quants import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise CheckpointError(f"{path}: {tensor.name!r} cannot be read: {error}") from None
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return torch.from_numpy(values.reshape(shape).copy())


def _turned(entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Keys of the query and key matrices -> their heads."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    return {
        key: int(entries[heads[part]])
        for key in tensors
        for part in heads
        if key.endswith(f"self_attn.{part}.weight")
    }


def gguf_tokenizer(
    metadata: Mapping[str, Any], vocab_size: int, source: str
) -> FastTokenizer | None:
    """The tokenizer in the metadata; None if there is none.

    Raises:
        CheckpointError: if it is no byte-level BPE, or splits text in a way that is not known.
    """
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind is None:
        return None
    if kind != "gpt2" or split not in PATTERNS:
        raise CheckpointError(
            f"{source}: tokenizer.ggml.model is {kind!r} with tokenizer.ggml.pre {split!r}; "
            f"supported: 'gpt2' with {', '.join(map(repr, PATTERNS))}"
        )
    names: list[str] = metadata["tokenizer.ggml.tokens"]
    files = {
        FAST_FILE: _tokenizer_json(metadata, names, str(split)).encode(),
        CONFIG_FILE: json.dumps(_tokenizer_config(metadata, names), indent=2).encode(),
    }
    end = metadata.get("tokenizer.ggml.eos_token_id")
    return FastTokenizer.from_files(files, vocab_size, [] if end is None else [int(end)], source)


def _tokenizer_json(metadata: Mapping[str, Any], names: list[str], split: str) -> str:
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(names))
    used = {name: i for i, name in enumerate(names) if types[i] in (NORMAL, CONTROL, USER_DEFINED)}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    fast = Tokenizer(BPE(used, merges, ignore_merges=split == "llama-bpe"))
    if split == "qwen2":
        fast.normalizer = normalizers.NFC()
    pieces = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in PATTERNS[split]]
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([*pieces, by_bytes])
    fast.decoder = decoders.ByteLevel()
    added = [
        AddedToken(name, normalized=False, special=types[i] == CONTROL)
        for name, i in used.items()
        if types[i] in (CONTROL, USER_DEFINED)
    ]
    fast.add_special_tokens([token for token in added if token.special])
    fast.add_tokens([token for token in added if not token.special])
    return fast.to_str()


def _tokenizer_config(metadata: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
    }
    for entry, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            config[f"{entry}_token"] = names[int(token)]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config
