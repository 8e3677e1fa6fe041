"""Requests and sampling parameters: what is refused before an engine sees it."""

from __future__ import annotations

import math

import pytest

from mhc_model import EngineError, SamplingParams


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 1 << 63},
        {"stop": "x"},
        {"stop": ("",)},
    ],
)
def test_refuses_bad_sampling_parameters(parameters):
    with pytest.raises(EngineError, match=next(iter(parameters))):
        SamplingParams(**parameters)


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 2.5},
        {"top_k": 1.5},
        {"seed": 1.5},
        {"seed": None},
        {"temperature": None},
        {"temperature": "0"},
        {"top_p": True},
    ],
)
def test_sampling_fields_of_a_wrong_type_are_refused(field):
    with pytest.raises(EngineError, match=rf"{next(iter(field))} is .* must be a"):
        SamplingParams(**field)


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_logprobs": 3},
        {"top_logprobs": 21, "logprobs": True},
        {"top_logprobs": -1, "logprobs": True},
        {"prompt_logprobs_from": -1},
        {"prompt_logprobs_from": 1.5},
        {"prompt_logprobs_from": 0, "max_tokens": -1},
    ],
)
def test_refuses_bad_logprob_parameters(parameters):
    with pytest.raises(EngineError, match=r"top_logprobs|prompt_logprobs_from|max_tokens"):
        SamplingParams(**parameters)
