"""An ablation with given outcomes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from outcomes import OUTCOMES

from rl.ablate import AblateConfig, Arm, Findings, HeldOut, Study
from rl.ablate.study import ARM


@pytest.fixture
def findings(checkpoint, tmp_path) -> Findings:
    config = AblateConfig(
        name="given",
        checkpoint=str(checkpoint),
        storage=str(tmp_path),
        problems=4,
        test_problems=8,
        seeds=(0, 1),
        grid=(0.0,),
        arms=("ppo:global", "best_constant", "random"),
        max_tokens=32,
    )
    study = Study.prepare(config)
    results = []
    for name, seed in OUTCOMES:
        method = name.split(":")[0]
        arm = Arm(name, method, "global", seed)
        gates = np.full((8, 4), 0.25, dtype=np.float32)
        results.append(HeldOut(arm, np.array(OUTCOMES[name, seed]) > 0, gates))
        study.path(arm).mkdir(parents=True)
        if method in ("ppo", "best_constant"):
            facts = {"rollouts": config.budget - 1}
            (study.path(arm) / ARM).write_text(json.dumps(facts))
    assert [result.arm.label for result in results] == [arm.label for arm in study.arms()]
    return Findings(study, results)
