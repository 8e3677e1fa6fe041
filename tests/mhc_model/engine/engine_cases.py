"""What the tests of the engine's modules share: requests, an oracle, and models that spell."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mhc_model import Decoder, Engine, ModelConfig, Request, SamplingParams, expand_gates
from mhc_model.engine import Completion, Row

GATES = [None, 0, 1, 0.5, [0.1, 0.9, 0.4], [0.0, 1.0, 0.2, 0.8, 0.6, 0.3], (1.0, 0.0, 1.0), 0.25]


def random_prompts(n: int, least: int = 1, most: int = 20, seed: int = 0) -> list[list[int]]:
    """n prompts of `least` to `most` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(least, most + 1, (n,), generator=generator).tolist()
    return [torch.randint(0, 61, (size,), generator=generator).tolist() for size in lengths]


def requests(n: int = 16, least: int = 1, most: int = 60, **sampling) -> list[Request]:
    """n requests with gates of their own and the same sampling parameters."""
    params = {"max_tokens": 10, "logprobs": True, **sampling}
    return [
        Request(prompt, gates, SamplingParams(**params))
        for prompt, gates in zip(random_prompts(n, least, most), GATES * n, strict=False)
    ]


def mixed_requests() -> list[Request]:
    """Eight requests of different lengths, gates and sampling parameters."""
    sampling = [
        SamplingParams(max_tokens=12, logprobs=True),
        SamplingParams(max_tokens=3, logprobs=True),
        SamplingParams(max_tokens=15, temperature=1.0, seed=5, logprobs=True),
        SamplingParams(max_tokens=9, temperature=0.7, top_k=5, seed=5, logprobs=True),
        SamplingParams(max_tokens=1, logprobs=True),
        SamplingParams(max_tokens=12, temperature=2.0, top_p=0.8, seed=7, logprobs=True),
        SamplingParams(max_tokens=20, temperature=1.3, top_k=9, top_p=0.9, seed=8, logprobs=True),
        SamplingParams(max_tokens=14, logprobs=True),
    ]
    return [
        Request(prompt, gates, parameters)
        for prompt, gates, parameters in zip(random_prompts(8), GATES, sampling, strict=True)
    ]


def make_row(
    prompt: Iterable[int] = (1,),
    index: int = 0,
    gates: torch.Tensor | None = None,
    stop_ids: Iterable[int] = (),
    *,
    id: str = "row",
    stream: bool = False,
    **sampling,
) -> Row:
    """A sample of a request that no engine has checked; of 5 tokens unless `max_tokens` says."""
    params = SamplingParams(**{"max_tokens": 5, **sampling})
    request = Request(list(prompt), None, params, id=id, stream=stream)
    return Row(request, index, gates, frozenset(stop_ids))


def alone(model: Decoder, request: Request, **options) -> list[Completion]:
    """The samples of a request that shares no batch and no prefix."""
    options = {"prefix_cache_bytes": 0, **options}
    return Engine(model, max_batch=1, **options).generate([request])


def run_to_end(engine: Engine) -> dict[str, Completion]:
    """Steps until there is no work; completions by request."""
    done: dict[str, Completion] = {}
    while engine.has_work:
        done.update((each.request_id, each) for each in engine.step())
    return done


def assert_same(a: Completion, b: Completion) -> None:
    assert (a.tokens, a.finish_reason, a.gates, a.index) == (
        b.tokens,
        b.finish_reason,
        b.gates,
        b.index,
    )
    torch.testing.assert_close(
        torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4, rtol=0
    )


@torch.no_grad()
def reference(model: Decoder, prompt: list[int], gates, max_tokens: int):
    """Greedy decoding with a whole forward pass a token: tokens, log-probabilities, margins."""
    tokens, logprobs, margins = list(prompt), [], []
    rows = None if gates is None else expand_gates(gates, model.config.n_layers)[None]
    for _ in range(max_tokens):
        scores = model(torch.tensor([tokens]), rows)[0, -1].log_softmax(dim=-1)
        best = scores.topk(2)
        tokens.append(int(best.indices[0]))
        logprobs.append(float(best.values[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return tuple(tokens[len(prompt) :]), logprobs, margins


@torch.no_grad()
def uncached_scores(model: Decoder, sequence: list[int], gates) -> torch.Tensor:
    """(t, v) log-probabilities of what follows each token."""
    rows = model.gate_rows([gates])
    return model(torch.tensor([sequence]), rows)[0].log_softmax(dim=-1)


@torch.no_grad()
def spelling_model(vocab_size: int, following: Iterable[tuple[int, int]]) -> Decoder:
    """A model whose likeliest token depends on the last one alone: b for each pair (a, b).

    Both sublayers write zeros, so the hidden state is the embedding of the last token, normalised;
    the embeddings are orthogonal, and the head has a one for each pair.
    """
    width = 2 * (vocab_size // 2 + 1)
    config = ModelConfig(vocab_size=vocab_size, n_layers=1, n_heads=1, d_model=width)
    model = Decoder(config)
    for layer in model.layers:
        layer.attention.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.embedding.weight.copy_(torch.eye(vocab_size, width))
    model.head.weight.zero_()
    for token, next_token in following:
        model.head.weight[next_token, token] = 1.0
    return model
