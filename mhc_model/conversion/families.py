"""The model families that one decoder serves: one table each, read in both directions.

A family says which entry of its config.json is which field of `ModelConfig`, what the rest must be,
and which tensor is which of ours. Names are those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mhc_model.config import ModelConfig
from mhc_model.conversion.layouts import (
    FUSED,
    FUSED_TRANSPOSED,
    SAME,
    SWAPPED_HALVES,
    TRANSPOSED,
    Layout,
)
from mhc_model.conversion.rope import rope_base
from mhc_model.errors import CheckpointError
from mhc_model.settings import validate_settings

FULL = "full_attention"  # the one of transformers' layer types that the decoder has


@dataclass(frozen=True)
class Rule:
    """One of their tensors; `{i}` stands for the index of the layer."""

    theirs: str
    ours: tuple[str, ...]
    layout: Layout = SAME


def _rules(table: Mapping[str, str], layout: Layout = SAME) -> tuple[Rule, ...]:
    return tuple(Rule(theirs, tuple(ours.split()), layout) for theirs, ours in table.items())


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: `model_type` in config.json.
        architecture: transformers' class.
        entries: our field -> their entry.
        defaults: their entries that may be missing, and what that means; others must be there.
        ours: fields that all models of the family share.
        theirs: entries that must have one of these values where they are given; the first is
            written.
        rules: tensors outside the layers, then those of each layer.
        sublayers: their attention and mlp of a layer.
        prefix: of their keys; it may be missing as a whole (checkpoints of the bare model).
        ignored: ends of keys that hold no weights.
        head: key of the output head.
    """

    name: str
    architecture: str
    entries: Mapping[str, str]
    defaults: Mapping[str, Any]
    ours: Mapping[str, Any]
    theirs: Mapping[str, tuple[Any, ...]]
    rules: tuple[Rule, ...]
    sublayers: tuple[str, str] = ("model.layers.{i}.self_attn", "model.layers.{i}.mlp")
    prefix: str = "model."
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    head: str = "lm_head.weight"

    def rules_of(self, config: ModelConfig) -> list[Rule]:
        """The rules of a model with `{i}` filled in; a tied head has none."""
        rules = []
        for rule in self.rules:
            if "{i}" not in rule.theirs:
                rules.append(rule)
                continue
            for i in range(config.n_layers):
                ours = tuple(name.replace("{i}", str(i)) for name in rule.ours)
                rules.append(Rule(rule.theirs.replace("{i}", str(i)), ours, rule.layout))
        return rules if config.tied else [*rules, Rule(self.head, ("head.weight",))]

    def model_config(self, entries: Mapping[str, Any], source: str) -> ModelConfig:
        """Their config.json as ours.

        Args:
            entries: of config.json.
            source: named in errors.

        Raises:
            CheckpointError: if an entry is missing or asks for what the decoder does not do.
            ConfigError: if the values make no model.
        """
        for entry, allowed in self.theirs.items():
            if entries.get(entry, allowed[0]) not in allowed:
                raise CheckpointError(
                    f"{source}: {entry} is {entries[entry]!r}; supported for {self.name}: "
                    f"{', '.join(map(repr, allowed))}"
                )
        if entries.get("quantization_config") is not None:
            raise CheckpointError(
                f"{source} has quantization_config: the weights are quantised; convert the "
                f"original, or a GGUF file"
            )
        others = sorted({str(kind) for kind in _layer_types(entries, source)} - {FULL})
        if others:
            raise CheckpointError(
                f"{source}: layer_types has {', '.join(map(repr, others))}; supported: {FULL!r}"
            )
        values = dict(self.ours)
        for name, entry in self.entries.items():
            if entry in entries:
                values[name] = entries[entry]
            elif entry in self.defaults:
                values[name] = self.defaults[entry]
            else:
                raise CheckpointError(f"{source} has no entry {entry!r}, which {self.name} needs")
        if values.get("positions") != "learned":
            values["rope_base"] = rope_base(entries, source)
        return validate_settings(ModelConfig, values, source)

    def config_entries(self, config: ModelConfig) -> dict[str, Any]:
        """Our configuration as their config.json; `mhc` plays no part."""
        values = resolved(config).model_dump()
        written: dict[str, Any] = {
            "model_type": self.name,
            "architectures": [self.architecture],
            **{entry: allowed[0] for entry, allowed in self.theirs.items()},
            **{entry: values[name] for name, entry in self.entries.items()},
        }
        if config.positions == "rope":
            written["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_base}
            written["rope_theta"] = config.rope_base  # where older versions look
        return written

    def describes(self, config: ModelConfig) -> bool:
        """Whether the family has models of this configuration (without its streams)."""
        plain = resolved(config)
        again = self.model_config(self.config_entries(config), self.name)
        return resolved(again) == plain


def resolved(config: ModelConfig) -> ModelConfig:
    """The plain model's configuration with every size stated."""
    sizes: dict[str, Any] = {
        "n_kv_heads": config.kv_heads,
        "d_head": config.head_dim,
        "d_mlp": config.mlp_width,
        "mlp_ratio": 4,
        "mhc": None,
    }
    if config.positions == "learned":
        sizes["rope_base"] = ModelConfig.model_fields["rope_base"].default
    return config.model_copy(update=sizes)


def _layer_types(entries: Mapping[str, Any], source: str) -> list[Any]:
    kinds = entries.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        raise CheckpointError(f"{source}: layer_types is {kinds!r:.100}; it must be a list")
    return kinds or []


_SIZES = {
    "vocab_size": "vocab_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_model": "hidden_size",
    "d_head": "head_dim",
    "d_mlp": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_LLAMA_RULES = _rules(
    {
        "model.embed_tokens.weight": "embedding.weight",
        "model.norm.weight": "final_norm.weight",
        "model.layers.{i}.input_layernorm.weight": "layers.{i}.attention_norm.weight",
        "model.layers.{i}.self_attn.q_proj.weight": "layers.{i}.attention.q_proj.weight",
        "model.layers.{i}.self_attn.k_proj.weight": "layers.{i}.attention.k_proj.weight",
        "model.layers.{i}.self_attn.v_proj.weight": "layers.{i}.attention.v_proj.weight",
        "model.layers.{i}.self_attn.o_proj.weight": "layers.{i}.attention.o_proj.weight",
        "model.layers.{i}.post_attention_layernorm.weight": "layers.{i}.mlp_norm.weight",
        "model.layers.{i}.mlp.gate_proj.weight": "layers.{i}.mlp.gate_proj.weight",
        "model.layers.{i}.mlp.up_proj.weight": "layers.{i}.mlp.up_proj.weight",
        "model.layers.{i}.mlp.down_proj.weight": "layers.{i}.mlp.down_proj.weight",
    }
)
_LLAMA_OURS = {
    "mlp": "swiglu",
    "norm": "rms_weight",
    "embedding_norm": False,
    "qk_norm": "none",
    "softcap": None,
}

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    entries=_SIZES,
    defaults=_DEFAULTS,
    ours=_LLAMA_OURS,
    theirs={"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    rules=_LLAMA_RULES,
)

QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    entries=_SIZES,
    defaults={**_DEFAULTS, "head_dim": 128},
    ours={**_LLAMA_OURS, "qk_norm": "rms_weight"},
    theirs={
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "use_sliding_window": (False,),
    },
    rules=_LLAMA_RULES
    + _rules(
        {
            "model.layers.{i}.self_attn.q_norm.weight": "layers.{i}.attention.q_norm.weight",
            "model.layers.{i}.self_attn.k_norm.weight": "layers.{i}.attention.k_norm.weight",
        }
    ),
)

NANOCHAT = Family(
    name="nanochat",
    architecture="NanoChatForCausalLM",
    entries={**_SIZES, "softcap": "final_logit_softcapping"},
    defaults={**_DEFAULTS, "final_logit_softcapping": 15.0},
    ours={},
    theirs={"hidden_act": ("relu2",), "attention_bias": (False,)},
    rules=_rules(
        {
            "model.embed_tokens.weight": "embedding.weight",
            "model.layers.{i}.self_attn.v_proj.weight": "layers.{i}.attention.v_proj.weight",
            "model.layers.{i}.self_attn.o_proj.weight": "layers.{i}.attention.o_proj.weight",
            "model.layers.{i}.mlp.fc1.weight": "layers.{i}.mlp.up_proj.weight",
            "model.layers.{i}.mlp.fc2.weight": "layers.{i}.mlp.down_proj.weight",
        }
    )
    + _rules(
        {
            "model.layers.{i}.self_attn.q_proj.weight": "layers.{i}.attention.q_proj.weight",
            "model.layers.{i}.self_attn.k_proj.weight": "layers.{i}.attention.k_proj.weight",
        },
        SWAPPED_HALVES,
    ),
)

_QKV = (
    "layers.{i}.attention.q_proj.%s layers.{i}.attention.k_proj.%s layers.{i}.attention.v_proj.%s"
)
GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    entries={
        "vocab_size": "vocab_size",
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "d_model": "n_embd",
        "d_mlp": "n_inner",
        "max_seq_len": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "tied": "tie_word_embeddings",
    },
    defaults={"n_inner": None, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    ours={
        "mlp": "gelu",
        "norm": "layer",
        "embedding_norm": False,
        "qk_norm": "none",
        "biases": True,
        "positions": "learned",
        "softcap": None,
    },
    theirs={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    rules=_rules(
        {
            "transformer.wte.weight": "embedding.weight",
            "transformer.wpe.weight": "position_embedding.weight",
            "transformer.ln_f.weight": "final_norm.weight",
            "transformer.ln_f.bias": "final_norm.bias",
            "transformer.h.{i}.ln_1.weight": "layers.{i}.attention_norm.weight",
            "transformer.h.{i}.ln_1.bias": "layers.{i}.attention_norm.bias",
            "transformer.h.{i}.attn.c_proj.bias": "layers.{i}.attention.o_proj.bias",
            "transformer.h.{i}.ln_2.weight": "layers.{i}.mlp_norm.weight",
            "transformer.h.{i}.ln_2.bias": "layers.{i}.mlp_norm.bias",
            "transformer.h.{i}.mlp.c_fc.bias": "layers.{i}.mlp.up_proj.bias",
            "transformer.h.{i}.mlp.c_proj.bias": "layers.{i}.mlp.down_proj.bias",
        }
    )
    + _rules({"transformer.h.{i}.attn.c_attn.bias": _QKV.replace("%s", "bias")}, FUSED)
    + _rules(
        {"transformer.h.{i}.attn.c_attn.weight": _QKV.replace("%s", "weight")}, FUSED_TRANSPOSED
    )
    + _rules(
        {
            "transformer.h.{i}.attn.c_proj.weight": "layers.{i}.attention.o_proj.weight",
            "transformer.h.{i}.mlp.c_fc.weight": "layers.{i}.mlp.up_proj.weight",
            "transformer.h.{i}.mlp.c_proj.weight": "layers.{i}.mlp.down_proj.weight",
        },
        TRANSPOSED,
    ),
    sublayers=("transformer.h.{i}.attn", "transformer.h.{i}.mlp"),
    prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias"),  # the causal mask
)

FAMILIES = {family.name: family for family in (QWEN3, LLAMA, NANOCHAT, GPT2)}


def family_of(entries: Mapping[str, Any], source: str) -> Family:
    """The family that a config.json is of.

    Raises:
        CheckpointError: naming the model type and the known ones.
    """
    name = entries.get("model_type")
    if name not in FAMILIES:
        raise CheckpointError(f"{source}: model_type is {name!r}; supported: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_for(config: ModelConfig) -> Family:
    """The family that has models of this configuration.

    Raises:
        CheckpointError: if there is none.
    """
    for family in FAMILIES.values():
        if family.describes(config):
            return family
    raise CheckpointError(
        f"no family of transformers has this architecture; known: {', '.join(FAMILIES)}"
    )
