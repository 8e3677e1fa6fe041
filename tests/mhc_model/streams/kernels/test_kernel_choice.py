"""Which kernels a model takes, and that it gives the same with any."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from triton_cases import IN_INTERPRETER, interpreted

from mhc_model import Decoder, MHCConfig, ModelConfig
from mhc_model.errors import ConfigError
from mhc_model.routing import watch_routing
from mhc_model.streams import kernels


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    kernels.select("auto")


@interpreted
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_decoder_takes_them_and_gives_the_same(autocast: bool) -> None:
    """Through `select`, with gates per row, routing watched, and every parameter's gradient."""
    config = ModelConfig(vocab_size=40, n_layers=2, n_heads=2, d_model=32, mhc=MHCConfig())
    model = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    tokens = torch.randint(40, (2, 7), generator=generator)
    gates = torch.tensor([[0.0, 0.3, 1.0, 0.5], [1.0, 0.0, 0.7, 0.2]])
    results = []
    for choice in ("eager", "triton"):
        kernels.select(choice)
        model.zero_grad()
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
            watch_routing(model) as routing,
        ):
            out = model(tokens, gates)
        F.cross_entropy(out.flatten(0, 1), tokens.flatten()).backward()
        moved = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([out.detach(), *moved, routing.sublayers()[1].res])
    for expected, found in zip(*results, strict=True):
        limit = 5e-2 if autocast else 1e-5
        assert (found - expected).norm() <= limit * expected.norm() + 1e-7


@pytest.mark.skipif(IN_INTERPRETER, reason="there the kernels can be used")
@pytest.mark.usefixtures("restored")
def test_the_switch_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"'fast'.*auto, eager, triton"):
        kernels.select("fast")
    model = Decoder(ModelConfig(vocab_size=9, n_layers=1, n_heads=1, d_model=16, mhc=MHCConfig()))
    kernels.select("triton")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="does not run on cpu"):
            model(torch.zeros(1, 3, dtype=torch.int64))


@interpreted
@pytest.mark.usefixtures("restored")
def test_the_switch_names_what_they_do_not_serve() -> None:
    kernels.select("triton")
    for fields, message in (
        ({"projection": "iterations"}, "projection is 'iterations'"),
        ({"projection": "identity"}, "projection is 'identity'"),
        ({"dynamic": False}, "dynamic is false"),
        ({"single_pass": True}, "single_pass is true"),
        ({"n_streams": 2}, "2 streams"),
    ):
        mhc = MHCConfig(**fields)
        model = Decoder(ModelConfig(vocab_size=9, n_layers=1, n_heads=1, d_model=16, mhc=mhc))
        with pytest.raises(ConfigError, match=message):
            model(torch.zeros(1, 3, dtype=torch.int64))
