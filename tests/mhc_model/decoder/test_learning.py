"""Training moves the routing, pulls the streams apart, and makes the gates matter, in numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhc_model import Decoder, MHCConfig, ModelConfig


def repetitions(b: int, t: int, seed: int) -> Tensor:
    """(b, t) tokens: a random word of 2 to 6 letters over and over, to be continued."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(b):
        size = int(torch.randint(2, 7, (), generator=generator))
        word = torch.randint(0, 24, (size,), generator=generator)
        rows.append(word.repeat(t // size + 1)[:t])
    return torch.stack(rows)


def loss_of(model: Decoder, tokens: Tensor, gates: Tensor | None) -> Tensor:
    logits = model(tokens[:, :-1], gates)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def test_gradients_reach_routing_and_gates(tiny_model):
    model = tiny_model()
    tokens = repetitions(2, 10, seed=0)
    loss_of(model, tokens, None).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() < 1e3, name
    # All but the last sublayer's, whose mixing the final mean cannot see.
    assert (model.gate_logits.grad[:-1].abs() > 1e-6).all()
    for connection in model.connections()[:-1]:
        assert connection.base.grad[8:].abs().max() > 1e-6
        assert connection.fn.grad[:, 8:].abs().max() > 1e-6
        assert connection.scale.grad.abs().min() > 0


def test_routing_learns_from_the_preset_of_the_config():
    """Zero-initialised head and output matrices hide H_res for two steps, not for longer."""
    config = ModelConfig(vocab_size=24, n_layers=2, n_heads=2, d_model=16, mhc=MHCConfig())
    model = Decoder(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, repetitions(8, 24, step), None).backward()
        if step < 2:
            optimizer.step()
    for connection in model.connections()[:-1]:
        gradient = connection.base.grad[8:]
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-9
    assert (model.gate_logits.grad[:-1].abs() > 0).all()


@pytest.fixture(scope="module")
def trained() -> Decoder:
    """A tiny mHC model, with streams that start apart, after 100 steps on repeated words."""
    mhc = MHCConfig(stream_embedding_std=1.0, pre_own=3.0, pre_others=-3.0, scale_init=0.01)
    config = ModelConfig(vocab_size=24, n_layers=2, n_heads=2, d_model=16, max_seq_len=32, mhc=mhc)
    model = Decoder(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for step in range(100):
        optimizer.zero_grad()
        loss_of(model, repetitions(8, 25, 1000 + step), None).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def test_training_moves_routing_and_makes_gates_matter(trained, observe):
    held_out = repetitions(256, 25, seed=1_000_000)

    def loss(gate: float) -> float:
        return loss_of(trained, held_out, torch.full((256, 4), gate)).item()

    assert loss(1.0) < 2.8, "ln 24 = 3.18 is chance"
    assert abs(loss(0.0) - loss(1.0)) > 1e-3
    seen = observe(trained, held_out, torch.ones(256, 4))
    for connection, streams, out in seen[:-1]:
        assert (out.res - connection.initial_res()).abs().max() > 1e-2
        similarity = F.cosine_similarity(streams[..., 0, :], streams[..., 1, :], dim=-1)
        assert similarity.mean() < 0.99
        # Routing depends on the token, not only on the sublayer.
        assert out.res.flatten(0, 1).std(dim=0).max() > 1e-4


@torch.no_grad()
def test_trained_routing_stays_doubly_stochastic(trained, observe):
    tokens = repetitions(64, 25, seed=2_000_000)
    for _, _, out in observe(trained, tokens, torch.rand(64, 4)):
        assert (out.res.sum(-1) - 1).abs().max() < 1e-5
        assert (out.res.sum(-2) - 1).abs().max() < 1e-5
