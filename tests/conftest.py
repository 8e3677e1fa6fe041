"""Shared fixtures: tiny models in which every parameter and every gate matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch
from ray_head import ROOT, RayHead, on_shared_cluster
from ray_head import ray_head as start_ray_head
from torch import Tensor
from vllm_engines import vllm_engines

from mhc_model import Decoder, MHCConfig, ModelConfig
from mhc_model.decoder import watching
from mhc_model.streams import Coefficients, HyperConnection

# A shared machine is slow at times; how long an example takes is not what these tests are about.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# One thread: the models are tiny, and the machine may run Ray workers beside the tests.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for clusters comes first: the other process of `make test` has work meanwhile."""
    clusters = {item.path for item in items if item.get_closest_marker("ray")}
    shared = {path for path in clusters if on_shared_cluster(path.relative_to(ROOT).as_posix())}
    items.sort(key=lambda item: (item.path not in shared, item.path not in clusters))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from two_processes import FileScheduling

    return FileScheduling(config, log)


def pytest_runtest_logfinish() -> None:
    vllm_engines.release()


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A cluster of four CPUs for tests that need one, but not one of their own."""
    with start_ray_head(cpus=4) as head:
        yield head


@pytest.fixture
def on_ray_head(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> RayHead:
    """Commands that a test runs in this process or below it go to that cluster."""
    monkeypatch.setenv("RAY_ADDRESS", ray_head.address)
    return ray_head


@pytest.fixture(scope="session")
def engine_kind(request: pytest.FixtureRequest) -> str:
    """ "torch", or where a module's tests run over both engines, each of `vllm_engines.ENGINES`."""
    kind: str = getattr(request, "param", "torch")
    return kind


def _tiny_config(plain: bool = False, mhc: dict[str, Any] | None = None, **fields: Any):
    values: dict[str, Any] = {
        "vocab_size": 61,
        "n_layers": 3,
        "n_heads": 4,
        "d_model": 32,
        "max_seq_len": 48,
    }
    # A diagonal of 1: H_res is far from the identity, so that mixing and gates show.
    streams = None if plain else MHCConfig(**{"res_diagonal": 1.0, **(mhc or {})})
    return ModelConfig(**{**values, **fields}, mhc=streams)


@torch.no_grad()
def _randomise(model: Decoder, seed: int = 0) -> Decoder:
    """Fills every parameter, also those that start at zero, from one seeded generator."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name == "embedding.weight":
            parameter.copy_(noise)
        elif name.endswith(".base"):
            parameter.add_(noise)
        elif name.endswith((".scale", "norm.weight")):
            parameter.copy_(1.0 + 0.2 * noise)
        elif name.endswith(".bias"):
            parameter.copy_(0.2 * noise)
        elif name.endswith(".fn"):
            parameter.copy_(noise / parameter.shape[0] ** 0.5)
        elif name in ("stream_embedding", "gate_logits"):
            parameter.copy_(0.7 * noise)
        else:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """`tiny_config(plain=False, mhc={...}, **fields)`: 3 layers of width 32."""
    return _tiny_config


@pytest.fixture(scope="session")
def randomise() -> Callable[..., Decoder]:
    """`randomise(model, seed=0)`: every parameter random, in place; returns the model."""
    return _randomise


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Decoder]:
    """`tiny_model(seed=0, **arguments of tiny_config)`: a randomised decoder in eval mode."""

    def build(seed: int = 0, **arguments: Any) -> Decoder:
        return _randomise(Decoder(_tiny_config(**arguments)), seed)

    return build


Observation = tuple[HyperConnection, Tensor, Coefficients]


@torch.no_grad()
def _observe(model: Decoder, tokens: Tensor, gates: Tensor | None) -> list[Observation]:
    seen: list[Observation] = []
    connections = model.connections()
    with watching(model, lambda k, x, out, gate: seen.append((connections[k], x, out))):
        model(tokens, gates)
    return seen


@pytest.fixture(scope="session")
def observe() -> Callable[..., list[Observation]]:
    """`observe(model, tokens, gates)`: each connection, the streams it saw, its coefficients."""
    return _observe
