"""The metadata of a GGUF file: typed, and with the defaults of the format and of llama.cpp.

What a file leaves out means what llama.cpp takes it for (src/llama-model.cpp): a file that it runs
is the same model here, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mhc_model.errors import CheckpointError

# Architecture -> whether llama.cpp's converter put queries and keys into interleaved order.
INTERLEAVED = {"llama": True, "qwen3": False}
# transformers' entry <- key, after the architecture's name; each must be there.
REQUIRED = {
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
EPSILON, BASE = "attention.layer_norm_rms_epsilon", "rope.freq_base"
DEFAULT_BASE = 10000.0
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}

T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True)
class Metadata:
    """Values by key, with the kind of each looked at when it is asked for.

    Attributes:
        values: as the file has them.
        source: named in errors.
    """

    values: Mapping[str, Any]
    source: str

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value of a key; None where there is none.

        Raises:
            CheckpointError: if it is of another kind.
        """
        value = self.values.get(key)
        if isinstance(value, list) and value and value == [value[0]] * len(value):
            value = value[0]  # one for each layer, all the same
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and kind is float:
            return kind(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(
                f"{self.source}: {key} is {value!r:.100}; it must be {WORDS[kind]}"
            )
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """As `get`, for a key that must be there."""
        value = self.get(key, kind)
        if value is None:
            raise CheckpointError(f"{self.source} has no entry {key!r}")
        return value

    def listed(self, key: str, kind: type[T]) -> list[T] | None:
        """The list of a key; None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(entry, kind) for entry in value):
            raise CheckpointError(f"{self.source}: {key} must be a list, each entry {WORDS[kind]}")
        return value

    def refuse(self, key: str, value: Any, supported: str) -> None:
        raise CheckpointError(f"{self.source}: {key} is {value!r}; supported: {supported}")


def config_entries(metadata: Metadata) -> dict[str, Any]:
    """Metadata as entries of config.json, without what the tensors tell.

    Raises:
        CheckpointError: for an unknown architecture, if an entry is missing, or for what the
            decoder does not do.
    """
    architecture = metadata.get("general.architecture", str)
    if architecture not in INTERLEAVED:
        raise CheckpointError(
            f"{metadata.source}: general.architecture is {architecture!r}; supported in GGUF "
            f"files: {', '.join(INTERLEAVED)}"
        )
    entries: dict[str, Any] = {"model_type": architecture}
    for entry, key in REQUIRED.items():
        entries[entry] = metadata.need(f"{architecture}.{key}", int)
        if entries[entry] < 1:
            metadata.refuse(f"{architecture}.{key}", entries[entry], "1 and more")
    heads = entries["num_attention_heads"]
    of_keys = metadata.get(f"{architecture}.attention.head_count_kv", int)
    entries["num_key_value_heads"] = heads if of_keys is None else of_keys
    # Stored as float32: 1e-05 reads 9.999999747378752e-06.
    entries["rms_norm_eps"] = float(f"{metadata.need(f'{architecture}.{EPSILON}', float):.7g}")
    base = metadata.get(f"{architecture}.{BASE}", float)
    entries["rope_theta"] = DEFAULT_BASE if base is None else base
    entries["head_dim"] = _head_dim(metadata, architecture, entries)
    _check_rope(metadata, architecture)
    _check_the_rest(metadata, architecture)
    return entries


def _head_dim(metadata: Metadata, architecture: str, entries: Mapping[str, Any]) -> int:
    """The width of a head: of queries, keys, values and the rotation alike."""
    share = entries["hidden_size"] // entries["num_attention_heads"]
    given = metadata.get(f"{architecture}.attention.key_length", int)
    width = share if given is None else given
    value_key = f"{architecture}.attention.value_length"
    of_values = metadata.get(value_key, int)
    if of_values not in (None, width):  # where it is missing the tensors tell
        metadata.refuse(value_key, of_values, f"{width}, that of queries and keys")
    turned_key = f"{architecture}.rope.dimension_count"
    turned = metadata.get(turned_key, int)
    if turned not in (None, width):
        metadata.refuse(turned_key, turned, f"{width}, the whole of a head")
    return width


def _check_rope(metadata: Metadata, architecture: str) -> None:
    """Refuses a scaled rotary embedding; a scale without a type is a linear one."""
    kind = metadata.get(f"{architecture}.rope.scaling.type", str)
    factor = metadata.get(f"{architecture}.rope.scaling.factor", float)
    if factor is None:  # the old name
        factor = metadata.get(f"{architecture}.rope.scale_linear", float)
    unscaled = kind == "none" or (kind in (None, "linear") and factor in (None, 0.0, 1.0))
    if not unscaled:
        raise CheckpointError(
            f"{metadata.source}: the rotary embedding is scaled (rope.scaling.type "
            f"{kind or 'linear'!r}, factor {factor}); supported: 'none'"
        )


def _check_the_rest(metadata: Metadata, architecture: str) -> None:
    """Refuses what would be another model."""
    for key in (
        "expert_count",
        "attention.sliding_window",
        "attention.scale",
        "logit_scale",
        "residual_scale",
        "embedding_scale",
        "attention.clamp_kqv",
        "attention.max_alibi_bias",
    ):
        value = metadata.get(f"{architecture}.{key}", float)
        if value not in (None, 0.0):
            metadata.refuse(f"{architecture}.{key}", value, "none")
    parts = metadata.get("split.count", int)
    if parts is not None and parts > 1:
        metadata.refuse("split.count", parts, "one file; merge the parts (llama-gguf-split)")
