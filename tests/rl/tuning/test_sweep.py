"""The bound over given gates."""

from __future__ import annotations

import pytest

from rl.tuning.sweep import summarize


def test_the_bound_over_given_gates_leaves_the_policy_out():
    summary = summarize({"learned": [1.0, 0.0, 0.0], "g=0": [0.0, 1.0, 0.0], "policy": [1.0] * 3})
    assert summary["best gate for each problem"]["accuracy"] == pytest.approx(2 / 3)
    assert summary["policy"]["accuracy"] == 1.0
