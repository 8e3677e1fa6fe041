"""Hooks of torch on hyper-connections: they fire, see streams and H_res, and may change them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mhc_model import Decoder, MHCConfig, ModelConfig
from mhc_model.decoder import watching
from mhc_model.streams import Coefficients

CONFIG = ModelConfig(
    vocab_size=50, n_layers=3, n_heads=2, d_model=16, max_seq_len=32, mhc=MHCConfig(n_streams=3)
)
TOKENS = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Decoder:
    model = Decoder(CONFIG).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def seen(model: Decoder) -> Iterator[list[tuple[nn.Module, Tensor, Tensor, Coefficients]]]:
    seen: list[tuple[nn.Module, Tensor, Tensor, Coefficients]] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.append((module, inputs[0], *output))

    handles = [connection.register_forward_hook(keep) for connection in model.connections()]
    yield seen
    for handle in handles:
        handle.remove()


def test_forward_hooks_see_streams_and_h_res(
    model: Decoder, seen: list[tuple[nn.Module, Tensor, Tensor, Coefficients]]
) -> None:
    watched: list[tuple[Tensor, Coefficients]] = []
    with watching(model, lambda k, x, coefficients, gates: watched.append((x, coefficients))):
        logits = model(TOKENS, torch.rand(2, 6))
    assert [module for module, *_ in seen] == model.connections()
    for (_, x, u, found), (streams, expected) in zip(seen, watched, strict=True):
        assert (x.shape, u.shape, found.res.shape) == ((2, 7, 3, 16), (2, 7, 16), (2, 7, 3, 3))
        assert torch.equal(x, streams)
        assert torch.equal(found.res, expected.res)
        assert (found.res.sum(-1) - 1).abs().max() < 1e-4
    assert logits.shape == (2, 7, 50)


@torch.no_grad()
def test_a_hook_changes_nothing_by_itself(model: Decoder) -> None:
    expected, gates = model(TOKENS), torch.rand(2, 6)
    steered = model(TOKENS, gates)
    for connection in model.connections()[1::2]:
        connection.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(model(TOKENS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(TOKENS, gates), steered, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_hook_may_change_what_it_sees(model: Decoder) -> None:
    """With the identity for H_res in every connection the gates no longer matter."""

    def unmixed(module: nn.Module, inputs: Any, output: Any) -> Any:
        u, coefficients = output
        identity = torch.eye(3).expand_as(coefficients.res)
        return u, coefficients._replace(res=identity)

    opened, closed = torch.ones(2, 6), torch.zeros(2, 6)
    plain = model(TOKENS, closed)
    assert (model(TOKENS, opened) - plain).abs().max() > 1e-3
    for connection in model.connections():
        connection.register_forward_hook(unmixed)
    torch.testing.assert_close(model(TOKENS, opened), plain, rtol=0, atol=1e-5)


def test_other_hooks_fire_too(model: Decoder) -> None:
    fired: list[str] = []
    first, second = model.connections()[:2]
    first.register_forward_pre_hook(lambda *_: fired.append("before"))
    second.register_full_backward_hook(lambda *_: fired.append("backward"))
    model(TOKENS).sum().backward()
    assert fired == ["before", "backward"]
    fired.clear()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, *_: fired.append(type(module).__name__)
    )
    try:
        model(TOKENS)
    finally:
        hook.remove()
    assert fired.count("HyperConnection") == 6


@pytest.mark.parametrize(
    "values",
    [
        {"single_pass": True},
        {"dynamic": False},
        {"projection": "identity"},
        {"projection": "free", "collapse": "learned"},
    ],
    ids=str,
)
@torch.no_grad()
def test_hooks_change_nothing_of_other_forms(values: dict[str, Any]) -> None:
    model = Decoder(CONFIG.model_copy(update={"mhc": MHCConfig(n_streams=3, **values)})).eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator()))
    expected = model(TOKENS)
    for connection in model.connections():
        connection.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(model(TOKENS), expected, rtol=1e-5, atol=1e-5)
