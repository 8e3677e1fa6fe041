"""The training loss and the gate noise."""

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import strategies as st

from mhc_model import Decoder, MHCConfig, ModelConfig
from train.loop import GateNoise, Objective, draw_gate_noise, noise_width

SIZES = {"vocab_size": 40, "n_layers": 2, "n_heads": 2, "d_model": 16, "max_seq_len": 16}
TOKENS = torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def decoder() -> Decoder:
    """With every parameter moved from its start, so that gates and head matter."""
    model = Decoder(ModelConfig(**SIZES, mhc=MHCConfig()))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def test_chunks_do_not_change_loss_or_gradient(decoder):
    gradients = []
    for chunk in (1000, 7):
        decoder.zero_grad()
        loss = Objective(decoder, chunk)(TOKENS, TOKENS)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in decoder.parameters())])
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-5, atol=1e-6)


def test_loss_is_the_mean_cross_entropy(decoder):
    expected = torch.nn.functional.cross_entropy(decoder(TOKENS).flatten(0, 1), TOKENS.flatten())
    torch.testing.assert_close(Objective(decoder, 1000)(TOKENS, TOKENS), expected)


def test_noise_replaces_the_gates_of_its_sequences_only(decoder):
    used = torch.tensor([[True], [False], [True], [False]])
    gates = torch.rand(4, 4, generator=torch.Generator().manual_seed(2))
    loss = Objective(decoder, 1000)(TOKENS, TOKENS, GateNoise(used, gates, torch.ones(())))
    rows = torch.where(used, gates, decoder.learned_gates())
    logits = decoder(TOKENS, rows)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS.flatten())
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, Objective(decoder, 1000)(TOKENS, TOKENS))


def test_learned_gates_get_a_gradient_from_the_other_sequences(decoder):
    gates = torch.rand(4, 4)
    for share, moved in ((False, True), (True, False)):
        decoder.zero_grad()
        noise = GateNoise(torch.full((4, 1), share), gates, torch.ones(()))
        Objective(decoder, 1000)(TOKENS, TOKENS, noise).backward()
        assert (decoder.gate_logits.grad.abs().max() > 0) == moved


@given(seed=st.integers(0, 10), step=st.integers(1, 1000), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_noise_is_bounded_and_a_function_of_the_step(seed, step, share):
    noise = draw_gate_noise(seed, step, 200, 6, share)
    again = draw_gate_noise(seed, step, 200, 6, share)
    assert noise.used.equal(again.used)
    assert noise.gates.equal(again.gates)
    assert noise.gates.shape == (200, 6)
    assert 0.0 <= noise.gates.min() < 0.1
    assert 0.9 < noise.gates.max() < 1.0
    assert abs(noise.used.float().mean().item() - share) < 0.15
    assert not noise.gates.equal(draw_gate_noise(seed, step + 1, 200, 6, share).gates)


def test_the_noise_widens_from_the_learned_gates(decoder):
    assert [noise_width(step, 100, 0.2) for step in (0, 10, 20, 100)] == [0.0, 0.5, 1.0, 1.0]
    assert noise_width(0, 100, 0.0) == 1.0
    learned = decoder.learned_gates()
    noise = draw_gate_noise(seed=0, step=3, batch=4, n_gates=4, share=1.0)
    for width in (0.0, 0.25, 1.0):
        gates = noise._replace(width=torch.tensor(width)).mixed_with(learned)
        torch.testing.assert_close(gates, (1 - width) * learned + width * noise.gates)
        assert ((gates >= 0) & (gates <= 1)).all()


def test_the_ramp_compiles_once(decoder):
    compiled = torch._dynamo.testing.CompileCounterWithBackend("eager")
    objective = Objective(decoder, 1000)
    step = torch.compile(objective, backend=compiled, fullgraph=True)
    for i in range(6):
        noise = draw_gate_noise(seed=0, step=i, batch=4, n_gates=4, share=0.5, width=i / 10)
        loss = step(TOKENS, TOKENS, noise)
        torch.testing.assert_close(loss, objective(TOKENS, TOKENS, noise))
    assert compiled.frame_count == 1
