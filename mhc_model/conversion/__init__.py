"""Pretrained models become checkpoints of ours, and go back: Qwen3, Llama, nanochat, GPT-2."""

from mhc_model.conversion.convert import convert
from mhc_model.conversion.export import export
from mhc_model.conversion.families import FAMILIES
from mhc_model.conversion.validate import Equivalence, validate_equivalence

__all__ = ["FAMILIES", "Equivalence", "convert", "export", "validate_equivalence"]
