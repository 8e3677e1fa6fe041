"""What arms learn becomes gates, and each draws answers of its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from mhc_model import Engine
from rl.pool import LocalPool
from rl.rollouts import Asker


def test_what_an_arm_found_becomes_gates_of_every_problem(findings):
    study = findings.study
    arms = {arm.label: arm for arm in study.arms()}
    assert study.gates(arms["learned"]) is None
    torch.testing.assert_close(study.gates(arms["g=0"]), torch.zeros(8, 4))
    found = arms["best_constant seed 1"]
    (study.path(found) / "gates.json").write_text("[0.1, 0.2, 0.3, 0.4]")
    expected = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(8, -1)
    torch.testing.assert_close(study.gates(found), expected)
    drawn = [study.gates(arms[f"random seed {seed}"]) for seed in (0, 1)]
    assert not torch.equal(*drawn)
    assert torch.equal(drawn[0], study.gates(arms["random seed 0"]))


def test_seeds_of_an_arm_draw_answers_of_their_own(findings, checkpoint):
    engine = Engine.from_checkpoint(checkpoint, device="cpu")
    asked = []

    class Recording(LocalPool):
        def run(self, requests):
            asked.append({request.sampling.seed for request in requests})
            return super().run(requests)

    fields = {"iterations": 1, "rollouts": 64, "max_tokens": 2, "temperature": 1.0}
    config = findings.study.config.model_copy(update=fields)
    asker = Asker(Recording(engine), engine.tokenizer, config)
    study = replace(findings.study, config=config, asker=asker)
    for arm in study.arms():
        if arm.method == "best_constant":
            study.learn(arm, {})
    assert [len(seeds) for seeds in asked] == [64, 64]
    assert not asked[0] & asked[1]
