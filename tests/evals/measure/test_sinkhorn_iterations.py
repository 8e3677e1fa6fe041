"""Fewer Sinkhorn iterations at inference, on tiny models."""

from __future__ import annotations

import pytest
import torch

from evals.measure import projection_errors, with_iterations
from mhc_model import Decoder
from mhc_model.errors import ConfigError


def test_iterations_replace_the_limit_and_share_the_weights(make_model, tiny_model):
    model = make_model()
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        exact = model(tokens)
        gaps, errors = [], []
        for iterations in (1, 3, 200):
            copy = with_iterations(model, iterations)
            assert copy.head.weight.data_ptr() == model.head.weight.data_ptr()
            gaps.append(float((copy(tokens) - exact).abs().max()))
            errors.append(projection_errors(copy, [list(range(40))])["row_error"])
    assert gaps[0] > gaps[1] > gaps[2]
    assert errors[0] > errors[1] > errors[2]
    assert gaps[2] < 1e-3
    assert projection_errors(model, [list(range(40))])["row_error"] < 1e-5
    with pytest.raises(ConfigError, match="plain"):
        with_iterations(make_model(mhc=False), 3)
    lite = Decoder(tiny_model(mhc={"projection": "permutations"}).config)
    with pytest.raises(ConfigError, match="projection is 'permutations'"):
        with_iterations(lite, 3)
