"""What a checkpoint directory holds for transformers, written without importing transformers.

`config_entries` goes into config.json and `REMOTE_CODE` into modeling_mhc_gates.py, so that
`AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)` finds our classes
(mhc_model/huggingface.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mhc_model.config import ModelConfig

MODEL_TYPE = "mhc_gates"
# ModelConfig.mlp by transformers' names.
ACTIVATIONS = {"relu2": "relu2", "swiglu": "silu", "gelu": "gelu_new"}

# The classes live in the package: transformers copies this file and would run a stale copy of them.
REMOTE_CODE = '''"""Lets transformers load this directory with trust_remote_code=True."""

try:
    from mhc_model.huggingface import MHCGatesConfig, MHCGatesForCausalLM
except ModuleNotFoundError as error:
    raise ImportError(
        f"This checkpoint needs the project that wrote it, mhc-gates, and {error.name} is not "
        "installed: run `pip install .` in a clone of the project."
    ) from error

__all__ = ["MHCGatesConfig", "MHCGatesForCausalLM"]
'''


def write_remote_code(directory: Path) -> None:
    """Writes modeling_mhc_gates.py."""
    (directory / "modeling_mhc_gates.py").write_text(REMOTE_CODE, encoding="utf-8")


def config_entries(config: ModelConfig) -> dict[str, Any]:
    """Entries of config.json by transformers' names; all follow from `config`.

    The checkpoint adds `mhc_gates`, the dump of `config`, from which everything is read back.
    """
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["MHCGatesForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_mhc_gates.MHCGatesConfig",
            "AutoModelForCausalLM": "modeling_mhc_gates.MHCGatesForCausalLM",
        },
        **shape_entries(config),
    }


def shape_entries(config: ModelConfig) -> dict[str, Any]:
    """The model's sizes by transformers' names, as tools such as lm-eval and vLLM read them."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATIONS[config.mlp],
        "tie_word_embeddings": config.tied,
    }
