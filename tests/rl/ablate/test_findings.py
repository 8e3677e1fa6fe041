"""Tables and tests of an ablation from given outcomes: pairs by seed, means over seeds, bound."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from evals.statistics import holm, mcnemar_exact, wilson_interval
from mhc_model import ConfigError, Engine
from rl.ablate import AblateConfig, Arm, Findings, HeldOut, Study, write_report
from rl.ablate.held_out import is_tested
from rl.ablate.report import picture_entry
from rl.ablate.run import _claim
from rl.ablate.study import ARM
from rl.pool import LocalPool
from rl.rollouts import Asker

OUTCOMES = {
    ("learned", None): [1, 1, 0, 0, 0, 0, 0, 0],
    ("g=0", None): [0, 0, 1, 0, 0, 0, 0, 0],
    ("ppo:global", 0): [1, 1, 1, 1, 1, 1, 0, 0],
    ("ppo:global", 1): [1, 1, 1, 1, 1, 0, 0, 0],
    ("best_constant", 0): [0, 0, 0, 0, 0, 0, 0, 1],
    ("best_constant", 1): [1, 1, 1, 1, 0, 0, 0, 0],
    ("random", 0): [0, 0, 0, 1, 0, 0, 0, 0],
    ("random", 1): [0, 0, 0, 1, 1, 0, 0, 0],
}


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


def test_pairs_have_the_same_seed_and_all_p_values_are_corrected_together(findings):
    pairs = [(test.first, test.second) for test in findings.tests]
    assert pairs == [
        ("learned", "ppo:global seed 0"),
        ("learned", "ppo:global seed 1"),
        ("learned", "best_constant seed 0"),
        ("learned", "best_constant seed 1"),
        ("best_constant seed 0", "ppo:global seed 0"),
        ("best_constant seed 1", "ppo:global seed 1"),
    ], "given and random gates are shown, not tested"
    expected = [
        mcnemar_exact(OUTCOMES[name_of(first)], OUTCOMES[name_of(second)])
        for first, second in pairs
    ]
    assert [test.mcnemar for test in findings.tests] == expected
    corrected = holm([test.p_value for test in expected])
    assert [test.holm_p for test in findings.tests] == corrected
    assert findings.tests[5].difference.value == pytest.approx(1 / 8)


def name_of(label: str) -> tuple[str, int | None]:
    name, _, seed = label.partition(" seed ")
    return name, int(seed) if seed else None


def test_an_arm_is_the_mean_of_its_seeds(findings):
    entry = findings.summary("ppo:global")
    assert entry["by_seed"] == [6 / 8, 5 / 8]
    assert entry["accuracy"] == pytest.approx(5.5 / 8)
    assert entry["difference"] == pytest.approx(3.5 / 8)
    low, high = entry["difference_95"]
    assert 0 < low < 3.5 / 8 < high
    assert entry["rollouts"] == findings.study.config.budget - 1
    assert findings.summary("learned")["rollouts"] == 0


def test_seeds_on_the_same_problems_do_not_count_as_more_problems(findings):
    assert picture_entry(findings, "ppo:global") == {"accuracy": pytest.approx(5.5 / 8)}
    low, high = wilson_interval(2, 8)
    assert picture_entry(findings, "learned") == {"accuracy": 2 / 8, "wilson_95": [low, high]}


def test_the_bound_is_what_given_and_random_gates_solve_together(findings):
    bound = findings.bound()
    assert bound["vectors"] == 4
    assert bound["correct"] == 5, "what learning arms found does not count"


def test_the_table_and_the_files(findings):
    path = write_report(findings)
    table = findings.arms_markdown().splitlines()
    assert "68.8 %" in table[4]
    assert "75.0 62.5" in table[4]
    assert "best of 4 for each problem" in table[-1]
    assert table[4] in path.read_text()
    results = json.loads((path.parent / "results.json").read_text())
    assert results["arms"]["ppo:global"]["accuracy"] == pytest.approx(5.5 / 8)
    assert len(results["runs"]) == len(OUTCOMES)


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


def test_an_answer_that_was_cut_off_is_asked_again(findings):
    study = findings.study
    learned = study.arms()[0]
    samples = study.path(learned) / "samples.jsonl"
    samples.write_text('{"id": 0}\n' * 7 + '{"id')
    assert not is_tested(study, learned)
    samples.write_text('{"id": 0}\n' * 8)
    assert is_tested(study, learned)


def test_an_ablation_goes_on_with_the_same_problems_only(findings):
    study = findings.study
    _claim(study)
    _claim(study)
    named = study.directory / "checkpoint.json"
    changed = replace(study, training=study.training[1:])
    with pytest.raises(ConfigError, match=r"given was started on problems [0-9a-f]+, not on"):
        _claim(changed)
    named.write_text(json.dumps({"content_hash": study.checkpoint.content_hash}))
    _claim(changed)  # an earlier version did not note them


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
