"""vLLM as a generator: our models in it, and a plain one of its own of the same size."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.generators import Figures, Generator, Prompt, Stopwatch, model_config, run_engine
from mhc_model import Decoder, save_checkpoint

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def vllm_generator(
    options: argparse.Namespace,
    name: str,
    model: Decoder,
    rows: int,
    gates: Sequence[Tensor | float | None],
) -> Generator:
    """Our engine's interface over vLLM with our plugin."""
    from mhc_model.vllm_plugin.engine import VLLMEngine

    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(Path(directory) / "model", model)
        engine = VLLMEngine.from_checkpoint(
            Path(directory) / "model",
            max_batch=rows,
            prefix_cache_bytes=0,
            prefill_chunk=_budget(options, rows),
            compiled=options.vllm_compiled,
        )
    cache = engine._engine.vllm_config.cache_config
    return Generator(name, run_engine(engine, gates), cache.kv_cache_memory_bytes)


def native_generator(options: argparse.Namespace, name: str, rows: int) -> Generator:
    """vLLM's own Qwen3 with random weights: as many parameters as our plain model has.

    Its mlp has three matrices of 8/3 the width where ours has two of 4 times it.
    """
    import vllm
    from vllm.inputs.engine import tokens_input

    from mhc_model.vllm_plugin.engine import cache_bytes, start

    model = _qwen3(options)
    dtype = getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as directory:
        model.to(dtype).save_pretrained(directory)
        memory = cache_bytes(model_config(options, plain=True), rows, options.context, dtype)
        engine = start(
            Path(directory),
            dtype=dtype,
            context=options.context,
            max_num_seqs=rows,
            max_num_batched_tokens=_budget(options, rows),
            kv_cache_memory_bytes=memory,
            enable_prefix_caching=False,
            enforce_eager=not options.vllm_compiled,
        )
    names = itertools.count()

    def run(prompts: Sequence[Prompt]) -> Figures:
        watch = Stopwatch(torch.device(options.device))
        for prompt in prompts:
            sampling = vllm.SamplingParams(
                max_tokens=prompt.max_tokens, temperature=0, ignore_eos=True, detokenize=False
            )
            engine.add_request(str(next(names)), tokens_input(prompt.tokens), sampling)
        tokens = 0
        while engine.has_unfinished_requests():
            done = [output for output in engine.step() if output.finished]
            tokens += sum(len(output.outputs[0].token_ids) for output in done)
        return Figures(tokens, *watch.read(), [], [])

    return Generator(name, run, memory)


def _budget(options: argparse.Namespace, rows: int) -> int:
    """Tokens of a step: the prompts of a batch at once, as our engine reads them."""
    return max(rows * options.prompt, 512)


def _qwen3(options: argparse.Namespace) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=options.vocabulary,
            hidden_size=options.width,
            intermediate_size=8 * options.width // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            num_key_value_heads=options.heads,
            head_dim=options.width // options.heads,
            max_position_embeddings=options.context + 1,  # vLLM's limit is one more than ours
            tie_word_embeddings=False,
        )
    )
