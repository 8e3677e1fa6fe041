"""How long a prompt takes and how long a token: several engines, interleaved.

Every repeat goes through all engines before the next one, so that whatever else the machine does
hits all of them alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from mhc_model.decoder import Decoder
from mhc_model.engine import Engine, Request, SamplingParams
from mhc_model.errors import ConfigError

UNTIMED = 1  # repeats before the timed ones: they allocate


class Load(NamedTuple):
    """What each measurement does."""

    prompt_tokens: int
    new_tokens: int


class Times(NamedTuple):
    """Seconds of one measurement.

    Attributes:
        prefill: from the first request until every prompt has its first token.
        decode: of one step, which gives every row one token; the mean over the steps.
    """

    prefill: float
    decode: float


def measure_latency(
    models: Mapping[str, Decoder], batches: Sequence[int], load: Load | None, repeats: int
) -> dict[str, Any]:
    """p50 and p95 over the repeats, by model and batch size.

    Args:
        models: name -> model, on its device; their learned gates are used (others cost the same).
        batches: numbers of requests at once.
        load: None takes half of the smallest context as prompt (at most 512) and a quarter of it
            as answer (at most 128).
        repeats: timed ones, at least 1.

    Raises:
        ConfigError: if prompt and answer do not fit a model's context.
    """
    context = min(model.config.max_seq_len for model in models.values())
    if load is None:
        load = Load(max(1, min(512, context // 2)), max(2, min(128, context // 4)))
    if load.prompt_tokens + load.new_tokens > context:
        raise ConfigError(
            f"{load.prompt_tokens} prompt and {load.new_tokens} new tokens exceed the smallest "
            f"context, {context}"
        )
    rows = []
    for batch in batches:
        engines = {
            name: Engine(model, max_batch=batch, max_seq_len=sum(load))
            for name, model in models.items()
        }
        times: dict[str, list[Times]] = {name: [] for name in engines}
        for repeat in range(UNTIMED + repeats):
            for name, engine in engines.items():
                found = _measure(engine, batch, load, repeat)
                if repeat >= UNTIMED:
                    times[name].append(found)
        rows += [_summary(name, batch, load, found) for name, found in times.items()]
    return {**load._asdict(), "repeats": repeats, "rows": rows}


def _measure(engine: Engine, batch: int, load: Load, seed: int) -> Times:
    # Prompts of its own for every repeat: none is in the prefix cache.
    generator = torch.Generator().manual_seed(seed)
    vocabulary = engine.model.config.vocab_size
    prompts = torch.randint(vocabulary, (batch, load.prompt_tokens), generator=generator).tolist()
    sampling = SamplingParams(max_tokens=load.new_tokens, ignore_eos=True)
    completions = engine.generate([Request(prompt, None, sampling) for prompt in prompts])
    timings = [completion.timings for completion in completions]
    prefill = max(timing.first_token_s for timing in timings)
    end = max(timing.total_s for timing in timings)
    return Times(prefill, (end - prefill) / max(1, load.new_tokens - 1))


def _summary(name: str, batch: int, load: Load, times: Sequence[Times]) -> dict[str, Any]:
    prefill, decode = (np.array(column) for column in zip(*times, strict=True))
    return {
        "model": name,
        "batch": batch,
        "prefill_ms": _percentiles(prefill),
        "decode_ms": _percentiles(decode),
        "prefill_tokens_per_s": round(batch * load.prompt_tokens / float(np.median(prefill)), 1),
        "decode_tokens_per_s": round(batch / float(np.median(decode)), 1),
    }


def _percentiles(seconds: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(1000.0 * seconds, [50, 95])
    return {"p50": round(float(low), 4), "p95": round(float(high), 4)}
