"""What arms learn becomes gates, and each draws answers of its own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mhc_model import ConfigError, Engine, GateError
from mhc_model.config import Behaviour
from rl.ablate import AblateConfig, Findings, HeldOut, Study, write_report
from rl.ablate.held_out import evaluate
from rl.ablate.study import constants
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


FIELDS = {"name": "named", "problems": 4, "test_problems": 6, "max_tokens": 8, "seeds": (0,)}
FIELDS |= {"iterations": 1, "rollouts": 64, "grid": (0.0, 0.5), "against": ("learned",)}


def study_of(checkpoint, tmp_path, **fields) -> Study:
    values = FIELDS | {"checkpoint": str(checkpoint), "storage": str(tmp_path)} | fields
    study = Study.prepare(AblateConfig(**values))
    engine = Engine.from_checkpoint(checkpoint, device="cpu")
    study.asker = Asker(LocalPool(engine), engine.tokenizer, study.config)
    return study


def results_of(study: Study) -> dict[str, HeldOut]:
    for arm in study.arms():
        if not study.is_learned(arm):
            study.learn(arm, {})
    return {arm.name: evaluate(study, arm, study.asker.answering(), {}) for arm in study.arms()}


def test_the_models_behaviours_are_arms_and_constants(named_checkpoint, tmp_path):
    study = study_of(
        named_checkpoint,
        tmp_path,
        arms=("behaviour:worked", "best_constant"),
        against=("learned", "behaviour:worked"),
    )
    labels = [arm.label for arm in study.arms()]
    assert labels == [
        *("learned", "g=0", "g=0.5", "behaviour:direct", "behaviour:worked"),
        "best_constant seed 0",
    ]
    results = results_of(study)
    assert results["behaviour:direct"].gates[0].tolist() == pytest.approx([0.15] * 4)
    worked = [0.85, 0.85, 0.5, 0.5]
    assert results["behaviour:worked"].gates[5].tolist() == pytest.approx(worked)
    model = study.checkpoint.model.config
    found = [row.tolist() for row in constants(study.config, model, "per_sublayer")]
    expected = [[0.0] * 4, [0.5] * 4, [0.15] * 4, worked]
    assert [pytest.approx(row) for row in expected] == found
    assert len(constants(study.config, model, "prompt_and_answer")) == 16
    tried = {tuple(json.loads(line)["gates"]) for line in study.rollouts(study.arms()[-1]).open()}
    assert len(tried) == 4, "each constant is tried"
    middle = Behaviour(gates=(0.4, 0.6))  # stands for the same gates as 0.5 of the grid
    same = model.model_copy(update={"behaviours": {"middle": middle}})
    assert len(constants(study.config, same, "global")) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": ("behaviour:brief",)}, "'behaviour:brief' is no behaviour.*behaviour:direct"),
        ({"against": ("behaviour:brief",)}, "'behaviour:brief' is no behaviour"),
        (
            {"arms": ("best_constant:prompt_and_answer",), "rollouts": 8, "envs": 8},
            "budget of 8 rollouts does not cover the 16 constants",
        ),
        ({"sweep": ("brief",)}, "gates are 'brief'; the names of this model are learned, direct"),
    ],
)
def test_what_the_model_lacks_is_refused(named_checkpoint, tmp_path, fields, message):
    own = fields | ({"ppo": {"minibatch": 8}} if "rollouts" in fields else {})
    with pytest.raises((ConfigError, GateError), match=message):
        study_of(named_checkpoint, tmp_path, **own)


def test_gates_of_prompt_and_answer_go_through_every_arm(named_checkpoint, tmp_path):
    known = {f"builtin-1-test-{i:06d}": {"prompt": "direct", "answer": 1.0} for i in range(5)}
    known["builtin-1-test-000005"] = "worked"
    (tmp_path / "known.json").write_text(json.dumps(known))
    spaces = [f"{method}:prompt_and_answer" for method in ("best_constant", "cem", "reinforce")]
    study = study_of(
        named_checkpoint,
        tmp_path,
        arms=(*spaces, "random:prompt_and_answer"),
        known=str(tmp_path / "known.json"),
        rollouts=128,
        envs=128,
        search={"candidates": 4},
    )
    results = results_of(study)
    assert results["known"].gates[0].tolist() == pytest.approx([0.15] * 4)
    assert results["known"].answer_gates[0].tolist() == [1.0] * 4
    assert results["known"].answer_gates[5].tolist() == results["known"].gates[5].tolist()
    for name in ("cem:prompt_and_answer", "random:prompt_and_answer"):
        prompt, answer = results[name].gates, results[name].answer_gates
        assert (prompt == prompt[:, :1]).all(), "one gate for all sublayers"
        assert (answer == answer[:, :1]).all()
        assert (prompt != answer).any()
    found = json.loads((study.path(study.arms()[-3]) / "gates.json").read_text())
    assert set(found) == {"prompt", "answer"}, "as a request takes them"
    rows = [json.loads(line) for line in study.rollouts(study.arms()[-2]).open()]
    assert all(len(row["gates"]) == len(row["answer_gates"]) == 4 for row in rows)
    report = write_report(Findings(study, list(results.values())))
    assert "pictures/gates-cem-prompt_and_answer.png" in report.read_text()
    saved = json.loads((study.directory / "results.json").read_text())
    cem = next(run for run in saved["runs"] if run["arm"] == "cem:prompt_and_answer")
    assert len(cem["gate_mean"]) == len(cem["answer_gate_mean"]) == 4


def test_held_out_answers_are_asked_also_where_the_likelihood_is_rewarded(
    named_checkpoint, tmp_path
):
    study = study_of(
        named_checkpoint, tmp_path, arms=("best_constant",), reward="likelihood", max_tokens=40
    )
    results = results_of(study)
    learned = results["learned"]
    assert (learned.rewards == learned.loglikelihood).all()
    assert (learned.rewards < 0).all()
    assert (learned.tokens > 0).any()
    rows = [json.loads(line) for line in study.rollouts(study.arms()[-1]).open()]
    assert all(row["right"] is None and row["tokens"] is None for row in rows), "nothing generated"
    best = max(results.values(), key=lambda result: result.rewards.mean())
    assert results["best_constant"].rewards.mean() > min(
        result.rewards.mean() for result in results.values()
    )
    assert best.rewards.mean() < 0
