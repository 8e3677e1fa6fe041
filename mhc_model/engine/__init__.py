"""Requests to completions: one running batch in which every row has its own gates.

In: `Request`s of token ids, gates and sampling parameters, at any time. Out: `Completion`s, and
`Delta`s of those that stream. May import the ground, tokenizer, decoder and checkpoint.

    request.py       what goes in and comes out
    base.py          `EngineBase`: what every engine does with requests
    engine.py        `Engine`: decoding with torch, step by step
    scheduler.py     which request gets a row, when and where
    batch.py         the running rows as tensors
    row.py           one sample under way: its text, where it ends
    prefill.py       prompts read in chunks, and scored
    decode.py        one more token for every row
    shaping.py       logits with penalties and biases, without what is forbidden
    grammar.py       answers of a given form, through llguidance
    sampling.py      tokens drawn with a seed a row
    arena.py         room for keys and values, within a budget
    prefix_cache.py  those of prompts' beginnings, by tokens and gates
"""

from mhc_model.engine.base import EngineBase
from mhc_model.engine.engine import PREFILL_CHUNK, PREFIX_CACHE_BYTES, Engine
from mhc_model.engine.grammar import Structure
from mhc_model.engine.request import (
    Alternatives,
    Completion,
    Delta,
    EngineStats,
    FinishReason,
    PromptLogprobs,
    Request,
    SamplingParams,
    Timings,
)
from mhc_model.engine.row import Row

__all__ = [
    "PREFILL_CHUNK",
    "PREFIX_CACHE_BYTES",
    "Alternatives",
    "Completion",
    "Delta",
    "Engine",
    "EngineBase",
    "EngineStats",
    "FinishReason",
    "PromptLogprobs",
    "Request",
    "Row",
    "SamplingParams",
    "Structure",
    "Timings",
]
