"""Converted models give in vLLM the tokens that transformers gives for the original."""

from __future__ import annotations

import pytest
import torch
from vllm_engines import NEEDS_VLLM, vllm_engines

from mhc_model import Request, SamplingParams
from mhc_model.conversion import convert

pytestmark = NEEDS_VLLM

MAX_TOKENS = 16


@torch.no_grad()
def greedy(model, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Without a cache: the plainest loop over transformers' model."""
    tokens, logprobs = list(prompt), []
    for _ in range(MAX_TOKENS):
        scores = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].log_softmax(-1)
        tokens.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return tokens[len(prompt) :], logprobs


@pytest.mark.parametrize("streams", [0, 4])
def test_vllm_gives_transformers_tokens(theirs, variant, streams, tmp_path):
    model = theirs(variant)
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", streams=streams)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 97, (n,), generator=generator).tolist() for n in (3, 17, 40)]
    sampling = SamplingParams(max_tokens=MAX_TOKENS, logprobs=True, ignore_eos=True)
    engine = vllm_engines.take(tmp_path / "ours")
    gates = 0.25 if streams else None
    for got in engine.generate([Request(prompt, gates, sampling) for prompt in prompts]):
        tokens, logprobs = greedy(model, prompts.pop(0))
        assert list(got.tokens) == tokens
        assert got.logprobs == pytest.approx(logprobs, abs=1e-4)
