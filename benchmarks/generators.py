"""Who generates text: our engine, a loop over it, and transformers with the same weights."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from benchmarks.timing import synchronize
from mhc_model import Decoder, Engine, MHCConfig, ModelConfig, Request, SamplingParams
from mhc_model.conversion.families import family_for
from mhc_model.conversion.state_dicts import to_transformers
from mhc_model.engine import Completion, EngineBase


class Prompt(NamedTuple):
    """Token ids, and how many tokens to generate."""

    tokens: list[int]
    max_tokens: int


class Figures(NamedTuple):
    """Of one run over all prompts; seconds. Times of single requests only where they are known."""

    tokens: int
    seconds: float
    cpu: float  # seconds of all threads: what other programs take is not in it
    first_token: list[float]
    per_token: list[float]


class Stopwatch:
    """Wall and CPU seconds since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        synchronize(device)
        self._begin = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        synchronize(self._device)
        return time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]


@dataclass(frozen=True)
class Generator:
    """A way to generate."""

    name: str
    run: Callable[[Sequence[Prompt]], Figures]
    memory: int  # bytes allocated for keys and values; 0 where they come and go


def model_config(options: argparse.Namespace, plain: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=options.vocabulary,
        n_layers=options.layers,
        n_heads=options.heads,
        d_model=options.width,
        max_seq_len=options.context,
        mhc=None if plain else MHCConfig(),
    )


def build_model(options: argparse.Namespace, plain: bool) -> Decoder:
    """Random weights, equal matrices in both; the coefficients of mHC move with the token."""
    model = Decoder(model_config(options, plain), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.head.weight.normal_(0.0, options.width**-0.5, generator=generator)
        for connection in model.connections():
            # Logits of spread one, so that the solver of the limit has work.
            spread = float(len(connection.fn)) ** -0.5 / connection.scale[0]
            connection.fn.normal_(0.0, float(spread), generator=generator)
    return model.to(options.device, getattr(torch, options.dtype)).eval()


def draw_prompts(options: argparse.Namespace, batch: int, mixed: bool) -> list[Prompt]:
    """Of one length each, or of lengths from a quarter of it up to all of it."""
    generator = torch.Generator().manual_seed(batch)

    def size(longest: int) -> int:
        least = max(1, longest // 4) if mixed else longest
        return int(torch.randint(least, longest + 1, (), generator=generator))

    return [
        Prompt(
            torch.randint(
                0, options.vocabulary, (size(options.prompt),), generator=generator
            ).tolist(),
            size(options.generate),
        )
        for _ in range(batch)
    ]


def gates_of(rows: int, n_gates: int, mixed: bool) -> list[Tensor | float]:
    if not mixed:
        return [0.5] * rows
    return list(torch.rand(rows, n_gates, generator=torch.Generator().manual_seed(2)))


def engine_generator(
    options: argparse.Namespace,
    name: str,
    model: Decoder,
    rows: int,
    gates: Sequence[Tensor | float | None],
) -> Generator:
    """Our engine; with fewer rows than prompts the others wait, with one it is a loop."""
    engine = Engine(model, max_batch=rows, prefix_cache_bytes=0, cuda_graphs=options.cuda_graphs)
    return Generator(name, run_engine(engine, gates), engine._arena._keys.nbytes * 2)


def run_engine(
    engine: EngineBase, gates: Sequence[Tensor | float | None]
) -> Callable[[Sequence[Prompt]], Figures]:
    """What runs prompts through an engine, each with its gates."""

    def run(prompts: Sequence[Prompt]) -> Figures:
        requests = [
            Request(prompt.tokens, gate, SamplingParams(max_tokens=prompt.max_tokens))
            for prompt, gate in zip(prompts, gates, strict=False)
        ]
        watch = Stopwatch(engine.device)
        done = engine.generate(requests)
        times = watch.read()
        tokens = sum(len(each.tokens) for each in done)
        first = [each.timings.first_token_s for each in done]
        return Figures(tokens, *times, first, [_per_token(each) for each in done])

    return run


def _per_token(completion: Completion) -> float:
    timings = completion.timings
    return (timings.total_s - timings.first_token_s) / max(1, len(completion.tokens) - 1)


def transformers_generator(name: str, model: Decoder, rows: int) -> Generator:
    """transformers' `generate` on its own class, `rows` prompts at a time.

    A batch of unequal prompts is padded on the left and generates until the longest is done; only
    tokens that were asked for count.
    """
    theirs = in_transformers(model)
    settings = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)

    @torch.inference_mode()
    def generate(prompts: Sequence[Prompt]) -> int:
        longest = max(len(prompt.tokens) for prompt in prompts)
        padded = [[0] * (longest - len(prompt.tokens)) + prompt.tokens for prompt in prompts]
        tokens = torch.tensor(padded, device=model.embedding.weight.device)
        own = [[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in prompts]
        new = max(prompt.max_tokens for prompt in prompts)
        mask = torch.tensor(own, device=tokens.device)
        settings.max_new_tokens = new
        output = theirs.generate(tokens, attention_mask=mask, generation_config=settings)
        assert output.shape[1] == longest + new
        return sum(prompt.max_tokens for prompt in prompts)

    def run(prompts: Sequence[Prompt]) -> Figures:
        groups = [prompts[i : i + rows] for i in range(0, len(prompts), rows)]
        watch = Stopwatch(model.embedding.weight.device)
        tokens = sum(generate(group) for group in groups)
        return Figures(tokens, *watch.read(), [], [])

    return Generator(name, run, 0)


def in_transformers(model: Decoder) -> Any:
    """The same plain weights in transformers' class."""
    family = family_for(model.config)
    entries = family.config_entries(model.config)
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(entries.pop("model_type"), **entries)
    )
    theirs.load_state_dict(to_transformers(family, model.config, model.state_dict()), strict=True)
    return theirs.to(model.embedding.weight.device, model.embedding.weight.dtype).eval()
