"""Pretrained models become checkpoints of ours, and go back: Qwen3, Llama, nanochat, GPT-2."""

from mhc_model.conversion.convert import convert
from mhc_model.conversion.families import FAMILIES

__all__ = ["FAMILIES", "convert"]
