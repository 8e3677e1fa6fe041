"""Pretrained models become checkpoints of ours, and go back: Qwen3, Llama, nanochat, GPT-2.

In: a directory, a name on the hub or a GGUF file. Out: a checkpoint with streams and gates that is
equal to the original at the start; or a directory for transformers' own class. May import the
ground, tokenizer, decoder, checkpoint and engine.

    families.py     one table a family: configuration and keys, in both directions
    layouts.py      how a matrix lies in a file: transposed, fused, halves swapped
    state_dicts.py  state dictionaries by these tables
    sources.py      what there is to convert: files, hub, GGUF
    rope.py         the base of the rotary embedding, wherever config.json has it
    gguf_files.py   GGUF: weights by transformers' names
    gguf_head.py    whether the head of such a file says what it can hold
    gguf_metadata.py, gguf_tokenizer.py   its configuration and tokenizer, with llama.cpp's defaults
    convert.py      `python -m mhc_model convert`
    export.py       `python -m mhc_model export`, the way back
    validate.py     `python -m mhc_model validate`: is it the same model
"""

from mhc_model.conversion.convert import convert
from mhc_model.conversion.export import export
from mhc_model.conversion.families import FAMILIES
from mhc_model.conversion.validate import Equivalence, validate_equivalence

__all__ = ["FAMILIES", "Equivalence", "convert", "export", "validate_equivalence"]
