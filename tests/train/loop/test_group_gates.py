"""Gates of rows that say something of them: ranges, granularity, and what each draw depends on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import strategies as st

from mhc_model import DataError, Decoder, MHCConfig, ModelConfig
from mhc_model.config import Behaviour
from train.data import RowGroup
from train.loop import GateNoise, GroupGates, Objective, draw_gate_noise

PER_LAYER = ((0.0, 0.1), (0.4, 0.6), (0.9, 1.0))
PER_SUBLAYER = tuple((k / 10, k / 10 + 0.05) for k in range(6))
BEHAVIOURS = {
    "direct": Behaviour(gates=(0.1, 0.3)),
    "layers": Behaviour(gates=PER_LAYER),
    "sublayers": Behaviour(gates=PER_SUBLAYER, at=0.25),
    "point": Behaviour(gates=(0.5, 0.5)),
    "top": Behaviour(gates=(0.7, 1.0)),
}
MODEL = ModelConfig(
    vocab_size=40,
    n_layers=3,
    n_heads=2,
    d_model=16,
    max_seq_len=16,
    mhc=MHCConfig(),
    behaviours=BEHAVIOURS,
)
NUMBERS = ((0.2,), (0.1, 0.5, 0.9), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
GROUPS = [RowGroup(group, 9, "rows.jsonl line 1") for group in (*BEHAVIOURS, *NUMBERS)]


def drawn(number: int, seed: int = 0, step: int = 1, batch: int = 400) -> torch.Tensor:
    return GroupGates(GROUPS, MODEL).draw(seed, step, torch.full((batch,), number))


def test_a_global_range_is_one_number_for_all_sublayers():
    for number, (low, high) in ((0, (0.1, 0.3)), (4, (0.7, 1.0))):
        gates = drawn(number)
        assert gates.shape == (400, 6)
        assert gates.dtype == torch.float32
        assert (gates == gates[:, :1]).all()
        assert low <= gates.min() < low + 0.01
        assert high - 0.01 < gates.max() <= high
        assert len(gates.unique()) > 390
        # As even as 400 draws in ten bins are: chi-squared with 9 degrees of freedom.
        bins = np.histogram(gates[:, 0].numpy(), bins=10, range=(low, high))[0]
        assert ((bins - 40) ** 2 / 40).sum() < 30


def test_ranges_of_layers_and_of_sublayers_are_drawn_apart():
    layers = drawn(1).view(400, 3, 2)
    assert (layers[..., 0] == layers[..., 1]).all()
    for gates, (low, high) in zip(layers[..., 0].unbind(1), PER_LAYER, strict=True):
        assert low <= gates.min() < gates.max() <= high
    correlations = np.corrcoef(layers[..., 0].numpy().T)
    assert np.abs(correlations - np.eye(3)).max() < 0.2
    sublayers = drawn(2)
    for gates, (low, high) in zip(sublayers.unbind(1), PER_SUBLAYER, strict=True):
        assert low <= gates.min() < gates.max() <= high
    assert np.abs(np.corrcoef(sublayers.numpy().T) - np.eye(6)).max() < 0.2


def test_numbers_are_as_the_rows_give_them():
    assert (drawn(3) == 0.5).all()
    assert (drawn(5) == torch.tensor(0.2)).all()
    assert (drawn(6)[7] == torch.tensor([0.1, 0.1, 0.5, 0.5, 0.9, 0.9])).all()
    assert (drawn(7)[7] == torch.tensor(NUMBERS[2])).all()


@given(
    seed=st.integers(0, 5),
    step=st.integers(1, 500),
    row=st.integers(0, 15),
    group=st.integers(0, len(GROUPS) - 1),
)
def test_a_draw_is_a_function_of_seed_step_and_sequence(seed, step, row, group):
    gates = GroupGates(GROUPS, MODEL)
    others = torch.randint(-1, len(GROUPS), (16,), generator=torch.Generator().manual_seed(step))
    groups = others.clone()
    groups[row] = group
    found = gates.draw(seed, step, groups)[row]
    # Whatever the other sequences are, and however many follow.
    alone = torch.full((row + 1,), -1)
    alone[row] = group
    assert gates.draw(seed, step, alone)[row].equal(found)
    assert gates.draw(seed, step, groups)[row].equal(found)
    if group in (0, 1, 2, 4):
        assert not gates.draw(seed + 1, step, groups)[row].equal(found)
        assert not gates.draw(seed, step + 1, groups)[row].equal(found)
    assert ((found >= 0) & (found <= 1)).all()


def test_the_gates_that_represent_a_group():
    gates = GroupGates(GROUPS, MODEL)
    expected: list[Any] = [
        [0.2] * 6,
        [0.05, 0.05, 0.5, 0.5, 0.95, 0.95],
        [0.25] * 6,
        [0.5] * 6,
        [0.85] * 6,
        [0.2] * 6,
        [0.1, 0.1, 0.5, 0.5, 0.9, 0.9],
        list(NUMBERS[2]),
    ]
    torch.testing.assert_close(gates.representative, torch.tensor(expected))
    assert [gates.name(number) for number in (-1, 0, 2, 5)] == [None, "direct", "sublayers", None]


def test_rows_without_a_group_keep_noise_and_learned_gates_as_they_are():
    gates = GroupGates(GROUPS, MODEL)
    groups = torch.tensor([-1, 0, -1, 4, -1, 6, -1, -1])
    own = gates.draw(0, 7, groups)
    learned = torch.full((6,), 0.9, requires_grad=True)
    for width in (0.0, 0.25, 1.0):
        noise = draw_gate_noise(0, 7, 8, 6, 0.5, width)
        assert noise.used[groups < 0].any()
        assert not noise.used[groups < 0].all()
        mixed = gates.over(noise, own, groups).mixed_with(learned)
        without = noise.mixed_with(learned)
        assert mixed[groups < 0].equal(without[groups < 0])
        assert mixed[groups >= 0].equal(own[groups >= 0]), "from the first step on"
    mixed = gates.over(None, own, groups).mixed_with(learned)
    assert mixed[groups < 0].equal(learned.expand(5, -1))
    assert mixed[groups >= 0].equal(own[groups >= 0])
    mixed.sum().backward()
    assert learned.grad.tolist() == [5.0] * 6


def test_parts_of_a_step_are_those_of_the_whole():
    gates = GroupGates(GROUPS, MODEL)
    groups = torch.arange(-1, 7)
    noise = gates.over(draw_gate_noise(3, 2, 8, 6, 0.5, 0.3), gates.draw(3, 2, groups), groups)
    learned = torch.rand(6)
    whole = noise.mixed_with(learned)
    for size in (1, 2, 4):
        parts = [noise.part(at, at + size).mixed_with(learned) for at in range(0, 8, size)]
        assert torch.cat(parts).equal(whole)


def test_a_step_compiles_once():
    decoder = Decoder(MODEL)
    gates = GroupGates(GROUPS, MODEL)
    tokens = torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(0))
    compiled = torch._dynamo.testing.CompileCounterWithBackend("eager")
    objective = Objective(decoder, 1000)
    step = torch.compile(objective, backend=compiled, fullgraph=True)
    for i in range(5):
        groups = torch.tensor([i % 3, -1, 4, -1 if i % 2 else 6])
        noise: GateNoise = gates.over(
            draw_gate_noise(0, i, 4, 6, 0.5, i / 10), gates.draw(0, i, groups), groups
        )
        torch.testing.assert_close(step(tokens, tokens, noise), objective(tokens, tokens, noise))
    assert compiled.frame_count == 1


def test_what_does_not_fit_the_model_is_refused():
    with pytest.raises(DataError, match=r"rows\.jsonl line 1 has behaviour 'loud'"):
        GroupGates([RowGroup("loud", 1, "rows.jsonl line 1")], MODEL)
