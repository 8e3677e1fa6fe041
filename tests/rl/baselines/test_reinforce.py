"""REINFORCE on rewards whose best gates are known."""

from __future__ import annotations

import torch
from known_gates import OBSERVATIONS, bench

from rl.baselines import (
    reinforce,
)


def test_reinforce_learns_what_depends_on_the_problem(tmp_path):
    own = bench(tmp_path, first=None, budget=6000)
    policy = reinforce(own, lr=0.01, batch=64, entropy=0.0)
    assert 6000 - 64 < own.used <= 6000
    with torch.no_grad():
        gates = policy(OBSERVATIONS)
    sign = OBSERVATIONS[:, 0] > 0
    assert float(gates[sign, 0].mean() - gates[~sign, 0].mean()) > 0.4
    assert float(gates[:, 1].mean()) > 0.65
