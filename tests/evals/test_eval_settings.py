"""What the configuration of an evaluation refuses."""

from __future__ import annotations

import pytest

from evals.settings import EvalSettings
from mhc_model.errors import ConfigError
from mhc_model.settings import validate_settings


def test_the_knob_needs_something_to_score():
    with pytest.raises(ConfigError, match="sinkhorn needs a task to score"):
        validate_settings(EvalSettings, {"checkpoint": "x", "out": "y", "tasks": "sinkhorn"}, "t")


def test_words_need_questions():
    values = {"checkpoint": "x", "out": "y", "tasks": "bpb", "words": "direct"}
    with pytest.raises(ConfigError, match=r"words are 'direct', but none .* gsm8k or gsm8k_8shot"):
        validate_settings(EvalSettings, values, "t")
