"""The gates of a model: learned, set in their place, or of a row each."""

from __future__ import annotations

import pytest
import torch
from decoder_cases import draw_gates, draw_tokens

from mhc_model import Decoder, GateError, expand_gates


def test_every_gate_matters_but_the_last(tiny_model):
    """The streams are averaged at the end, and a doubly stochastic mixing keeps the average: the
    last sublayer's gate cannot matter. Every other gate must."""
    model = tiny_model()
    tokens, gates = draw_tokens(model.config), torch.full((2, 6), 0.5)
    with torch.no_grad():
        base = model(tokens, gates)
        for i in range(6):
            turned = gates.clone()
            turned[0, i] = 1.0
            change = (model(tokens, turned) - base).abs().amax(dim=(1, 2))
            assert change[1] < 1e-5, "another row's gate has leaked"
            if i < 5:
                assert change[0] > 1e-2
            else:
                assert change[0] < 1e-4


def test_no_gates_means_the_learned_ones(tiny_model):
    model = tiny_model()
    tokens = draw_tokens(model.config)
    learned = model.learned_gates()
    assert learned.shape == (6,)
    assert ((learned > 0) & (learned < 1)).all()
    with torch.no_grad():
        assert torch.equal(model(tokens), model(tokens, learned.expand(2, -1)))
        other = model(tokens, 1 - learned.expand(2, -1))
    assert (model(tokens) - other).abs().max() > 1e-2


def test_learned_gates_start_at_the_configured_value(tiny_config):
    model = Decoder(tiny_config(mhc={"gate_init": 0.3}))
    torch.testing.assert_close(model.learned_gates(), torch.full((6,), 0.3))


def test_setters_change_what_no_gates_mean(tiny_model):
    model = tiny_model()
    tokens = draw_tokens(model.config)
    with torch.no_grad():
        learned = model(tokens)
        for given, call in (
            (0.25, lambda: model.set_gate(0.25)),
            ([0.1, 0.5, 1.0], lambda: model.set_gates_per_layer([0.1, 0.5, 1.0])),
            ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], lambda: model.set_gates([0, 0.2, 0.4, 0.6, 0.8, 1])),
        ):
            call()
            row = expand_gates(given, 3).expand(2, -1)
            assert torch.equal(model(tokens), model(tokens, row))
            assert torch.equal(model.learned_gates(), torch.sigmoid(model.gate_logits))
        model.reset_gates()
        assert torch.equal(model(tokens), learned)
    with pytest.raises(GateError, match=r"1\.5"):
        model.set_gate(1.5)
    with pytest.raises(GateError, match="6 gates for 3 layers"):
        model.set_gates_per_layer([0.5] * 6)


def test_learned_and_given_gates_in_one_batch(tiny_model):
    model = tiny_model()
    tokens = draw_tokens(model.config, b=3)
    rows = model.gate_rows([None, 0.5, [0.1, 0.2, 0.3]])
    assert torch.equal(rows[0], model.learned_gates())
    with torch.no_grad():
        together = model(tokens, rows)
        torch.testing.assert_close(together[:1], model(tokens[:1]), atol=1e-5, rtol=0)
    rows.sum().backward()
    assert model.gate_logits.grad.abs().min() > 0
    with pytest.raises(GateError, match=r"gate 1 is 2.0"):
        model.gate_rows([None, [0.1, 2.0, 0.3]])


def test_mixed_gates_in_a_batch_equal_one_by_one(tiny_model):
    model = tiny_model()
    tokens, gates = draw_tokens(model.config, b=5), draw_gates(model.config, b=5)
    with torch.no_grad():
        together = model(tokens, gates)
        for row in range(5):
            alone = model(tokens[row : row + 1], gates[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3), (2, 12), (2, 1), (3, 6), (2, 1, 6)])
def test_refuses_gates_of_another_shape(tiny_model, shape):
    model = tiny_model()
    with pytest.raises(GateError, match=r"expected \(2, 6\).*3 \(one per layer\).*\[0, 1\]"):
        model(draw_tokens(model.config), torch.ones(shape))


def test_a_plain_model_refuses_gates(tiny_model):
    model = tiny_model(plain=True)
    with pytest.raises(GateError, match="plain"):
        model(draw_tokens(model.config), torch.ones(2, 6))
    with pytest.raises(GateError, match="plain"):
        model.learned_gates()
    assert model.connections() == []
    assert model.config.n_gates == 0
