"""expand_gates takes what it promises and refuses everything else."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhc_model import GateError, expand_gates
from mhc_model.gates import gate_names, gates_hash

unit = st.floats(0.0, 1.0, width=32)
layers = st.integers(1, 24)


def containers(values: list[float]) -> list[object]:
    """The same numbers in every container that is allowed."""
    return [
        values,
        tuple(values),
        np.array(values, dtype=np.float32),
        np.array(values, dtype=np.float64),
        [np.float32(value) for value in values],
        torch.tensor(values),
        torch.tensor(values, dtype=torch.float64, requires_grad=True),
    ]


@given(value=unit, n_layers=layers)
def test_one_number_is_global(value, n_layers):
    expected = torch.full((2 * n_layers,), value)
    scalars = [value, np.float32(value), np.array(value), torch.tensor(value)]
    for gates in [*scalars, *containers([value])]:
        expanded = expand_gates(gates, n_layers)
        assert expanded.dtype == torch.float32
        assert torch.equal(expanded, expected)


@given(data=st.data(), n_layers=layers)
def test_one_number_a_layer(data, n_layers):
    values = data.draw(st.lists(unit, min_size=n_layers, max_size=n_layers))
    for gates in containers(values):
        expanded = expand_gates(gates, n_layers).tolist()
        assert expanded[0::2] == values  # attention
        assert expanded[1::2] == values  # mlp


@given(data=st.data(), n_layers=layers)
def test_one_number_a_sublayer(data, n_layers):
    values = data.draw(st.lists(unit, min_size=2 * n_layers, max_size=2 * n_layers))
    for gates in containers(values):
        assert expand_gates(gates, n_layers).tolist() == values


def test_integers_and_fractions():
    assert expand_gates(1, 2).tolist() == [1.0] * 4
    assert expand_gates([0, 1, 1, 0], 2).tolist() == [0.0, 1.0, 1.0, 0.0]
    assert expand_gates(torch.tensor([0, 1]), 2).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert expand_gates([Fraction(1, 4)], 1).tolist() == [0.25, 0.25]


def test_result_is_independent_of_the_input():
    given_gates = torch.rand(6, requires_grad=True)
    expanded = expand_gates(given_gates, 3)
    assert not expanded.requires_grad
    expanded.zero_()
    assert given_gates.min() > 0


REFUSED = {
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "below": -0.1,
    "just below": -1e-12,
    "above": 1.1,
    "just above": 1.0 + 1e-12,
    "huge integer": 10**400,
    "huge negative integer": -(10**400),
    "NaN in a list": [0.5, math.nan, 0.5],
    "below in a list": [0.5, 0.5, -0.1],
    "string": "0.5",
    "bytes": b"\x01",
    "word": "learned",
    "list of strings": ["0.5"] * 3,
    "none": None,
    "list with none": [0.5, None, 0.5],
    "true": True,
    "list of bools": [True, False, True],
    "nested": [[0.5] * 6],
    "complex": 0.5 + 0j,
    "list of complex": [0.5 + 0j],
    "dict": {0: 0.5},
    "set": {0.5},
    "generator": (0.5 for _ in range(3)),
    "empty list": [],
    "empty tensor": torch.zeros(0),
    "two": [0.5] * 2,
    "four": [0.5] * 4,
    "five": [0.5] * 5,
    "seven": [0.5] * 7,
    "numpy NaN": np.array([0.5, np.nan, 0.5]),
    "numpy matrix": np.full((1, 6), 0.5),
    "numpy bools": np.array([True] * 6),
    "numpy strings": np.array(["0.5"] * 6),
    "numpy complex": np.array([0.5 + 0j] * 6),
    "tensor NaN": torch.tensor([math.nan]),
    "tensor above": torch.full((6,), 1.1),
    "tensor matrix": torch.full((1, 6), 0.5),
    "tensor bools": torch.ones(6, dtype=torch.bool),
    "tensor complex": torch.full((6,), 0.5 + 0j),
    "list of tensors": [torch.tensor(0.5)] * 6,
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_everything_else_and_names_the_limits(name):
    with pytest.raises(GateError) as error:
        expand_gates(REFUSED[name], 3)
    message = str(error.value)
    assert "1 number" in message
    assert "3 (one per layer)" in message
    assert "6 (one per sublayer)" in message
    assert "[0, 1]" in message


@given(
    values=st.lists(unit, max_size=20),
    n_layers=st.integers(2, 12),
    bad=st.floats(allow_nan=True).filter(lambda x: not 0.0 <= x <= 1.0),
    data=st.data(),
)
def test_refuses_any_wrong_length_and_any_wrong_value(values, n_layers, bad, data):
    if len(values) not in (1, n_layers, 2 * n_layers):
        with pytest.raises(GateError, match=f"{len(values)} gates given"):
            expand_gates(values, n_layers)
    position = data.draw(st.integers(0, n_layers - 1))
    gates = [0.5] * n_layers
    gates[position] = bad
    with pytest.raises(GateError, match=f"gate {position} is"):
        expand_gates(gates, n_layers)


def test_a_gate_error_is_a_value_error():
    assert issubclass(GateError, ValueError)


def test_names_are_in_gate_order():
    assert gate_names(2) == ["layer0.attention", "layer0.mlp", "layer1.attention", "layer1.mlp"]


def test_hash_names_the_values_not_the_way_they_were_given():
    one = gates_hash(expand_gates(0.5, 3))
    assert one == gates_hash(expand_gates([0.5] * 3, 3)) == gates_hash(torch.full((6,), 0.5))
    assert len(one) == 64
    assert one != gates_hash(expand_gates([0.5, 0.5, 0.25], 3))
    assert one != gates_hash(expand_gates(0.5, 2))
    assert gates_hash(expand_gates(-0.0, 3)) == gates_hash(expand_gates(0, 3))
