"""The budget of a bench."""

from __future__ import annotations

import pytest
import torch
from known_gates import bench


def test_nobody_spends_more_than_the_budget(tmp_path):
    own = bench(tmp_path, first=0.5, budget=10)
    with pytest.raises(ValueError, match="11 rollouts asked for, 10 are left"):
        own.ask(own.draw(11), torch.full((11, 2), 0.5))
