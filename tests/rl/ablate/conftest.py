"""Ablations with given outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from outcomes import OUTCOMES, TOKENS, held_out_rows

from rl.ablate import AblateConfig, Arm, Findings, HeldOut, Study
from rl.ablate.study import ARM


@pytest.fixture
def findings_of(checkpoint, tmp_path) -> Callable[..., Findings]:
    """`findings_of(**fields)`: the given outcomes under these fields of the configuration."""

    def build(**fields) -> Findings:
        values = {
            "name": "given",
            "checkpoint": str(checkpoint),
            "storage": str(tmp_path),
            "problems": 4,
            "test_problems": 8,
            "seeds": (0, 1),
            "grid": (0.0,),
            "arms": ("ppo:global", "best_constant", "random"),
            "max_tokens": 32,
        }
        config = AblateConfig(**{**values, **fields})
        study = Study.prepare(config)
        results = []
        for name, seed in OUTCOMES:
            method = name.split(":")[0]
            arm = Arm(name, method, "global", seed)
            rows = held_out_rows(OUTCOMES[name, seed], TOKENS[name])
            results.append(HeldOut.read(arm, rows, config))
            study.path(arm).mkdir(parents=True)
            if method in ("ppo", "best_constant"):
                facts = {"rollouts": config.budget - 1}
                (study.path(arm) / ARM).write_text(json.dumps(facts))
        assert [result.arm.label for result in results] == [arm.label for arm in study.arms()]
        return Findings(study, results)

    return build


@pytest.fixture
def findings(findings_of) -> Findings:
    return findings_of()
