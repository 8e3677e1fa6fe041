"""Gates that are the same for all problems, on rewards whose best gates are known."""

from __future__ import annotations

import json

import torch
from known_gates import bench

from rl.baselines import (
    best_of_grid,
    cross_entropy_search,
)


def test_the_best_of_a_grid_is_asked_on_the_same_problems(tmp_path):
    own = bench(tmp_path, first=0.8, budget=1001)
    candidates = [torch.full((4,), gate) for gate in (0.0, 0.25, 0.75, 1.0)]
    assert best_of_grid(own, candidates).tolist() == [0.75] * 4
    assert own.used == 1000
    rows = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").open()]
    problems = [[row["problem"] for row in rows[k * 250 :][:250]] for k in range(4)]
    assert problems[0] == problems[1] == problems[2] == problems[3]


def test_cross_entropy_search_finds_one_vector(tmp_path):
    own = bench(tmp_path, first=0.1)
    found = cross_entropy_search(own, candidates=32, elite=0.25)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.8]), atol=0.15, rtol=0)
    assert 3000 - 256 < own.used <= 3000
