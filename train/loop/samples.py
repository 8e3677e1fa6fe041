"""Texts that the model under training continues, for a person to read."""

from __future__ import annotations

import torch

from mhc_model.decoder import Decoder
from mhc_model.engine import Engine, Request, SamplingParams
from mhc_model.errors import ConfigError
from mhc_model.tokenizer import Tokenizer
from train.config import SamplesConfig


def check_samples(config: SamplesConfig, tokenizer: Tokenizer, context: int) -> None:
    """Refuses, before anything is trained, prompts that would not fit.

    Raises:
        ConfigError: naming the prompt and its length.
    """
    for text in config.prompts:
        count = len(tokenizer.encode(text, bos=True))
        if count == 0 or count + config.max_tokens > context:
            raise ConfigError(
                f"samples.prompts has {text!r} of {count} tokens; it must have one at least, and "
                f"with samples.max_tokens {config.max_tokens} no more than the context of {context}"
            )


@torch.no_grad()
def write_samples(
    decoder: Decoder, tokenizer: Tokenizer, config: SamplesConfig
) -> list[dict[str, str]]:
    """The greedy continuation of every prompt: `prompt` and `text`.

    All of them under the learned gates, then under those of every behaviour, which is `behaviour`.
    """
    training = decoder.training
    names = [None, *decoder.config.behaviours]
    asked = [(name, text) for name in names for text in config.prompts]
    try:
        engine = Engine(
            decoder, tokenizer, max_batch=len(asked), prefix_cache_bytes=0
        )  # which puts the model into eval mode
        sampling = SamplingParams(max_tokens=config.max_tokens)
        rows = tokenizer.encode_batch([text for _, text in asked], bos=True)
        completions = engine.generate(
            [
                Request(row, gates=name, sampling=sampling)
                for (name, _), row in zip(asked, rows, strict=True)
            ]
        )
    finally:
        decoder.train(training)
    return [
        {"prompt": text, "text": completion.text or "", **({"behaviour": name} if name else {})}
        for (name, text), completion in zip(asked, completions, strict=True)
    ]
