"""Which commands a study runs, and in which order."""

from __future__ import annotations

from pathlib import Path

from examples.study import calibration_steps, seed_steps

DIRECTORY = Path("/studies/tiny")
BEHAVIOURS = {"behaviours": {"direct": {"gates": [0.0, 0.3]}}}
ABLATION = {"arms": ["ppo:global"], "against": ["learned"]}


def by_name(steps):
    assert len({step.name for step in steps}) == len(steps)
    return {step.name: step for step in steps}


def test_seeds_come_one_after_the_other_and_every_step_after_what_it_needs(study_config):
    config = study_config(seeds=[3, 1], behaviours=BEHAVIOURS, ablation=ABLATION)
    steps = seed_steps(config, DIRECTORY)
    assert [step.seed for step in steps] == [3] * 9 + [1] * 9
    seen = set()
    for step in steps:
        assert set(step.needs) <= seen
        seen.add(step.name)


def test_what_each_step_runs(study_config):
    config = study_config(seeds=[5], behaviours=BEHAVIOURS, ablation=ABLATION)
    steps = by_name(seed_steps(config, DIRECTORY, {"plain": 0.5, "mhc": 1.0}))
    trainings = {name for name, step in steps.items() if step.module == "train"}
    # The reference is not trained twice.
    names = ("plain-tokens", "mhc-tokens", "plain-time", "behaviours")
    assert trainings == {f"seed-5/{name}" for name in names}
    plain, mhc = steps["seed-5/plain-tokens"].values, steps["seed-5/mhc-tokens"].values
    assert (plain["model"]["mhc"], mhc["model"]["mhc"]) == (None, {"n_streams": 2})
    assert (plain["seed"], plain["name"]) == (5, "plain-tokens")
    assert plain["storage"] == "/studies/tiny/seed-5"
    assert plain["steps"] == mhc["steps"] == 4
    # Half as long a step: twice as many of them.
    assert steps["seed-5/plain-time"].values["steps"] == 8
    assert steps["seed-5/plain-time"].result.endswith("step-000008/model/model.safetensors")
    assert steps["seed-5/behaviours"].values["behaviours"] == BEHAVIOURS["behaviours"]
    evals = steps["seed-5/plain-time-evals"]
    assert evals.needs == ("seed-5/plain-time",)
    assert evals.values["checkpoint"] == "/studies/tiny/seed-5/plain-time"
    gates = {name: steps[f"seed-5/gates-{name}"] for name in ("with", "without")}
    assert gates["without"].values["checkpoint"] == "/studies/tiny/seed-5/mhc-tokens"
    assert gates["with"].values["checkpoint"] == "/studies/tiny/seed-5/behaviours"
    assert gates["with"].values["seeds"] == [5]
    assert gates["without"].values["against"] == ["learned"]
    assert gates["with"].values["against"] == ["learned", "behaviour:direct"]


def test_calibration_times_all_variants_in_turn(study_config):
    config = study_config(calibration={"rounds": 2, "steps": 3, "untimed": 1})
    steps = calibration_steps(config, DIRECTORY)
    order = [step.name for step in steps]
    assert order == [f"calibration/round-{n}" for n in ("0/plain", "0/mhc", "1/mhc", "1/plain")]
    assert all(step.values["steps"] == 3 for step in steps)
    warm = study_config(train=config.train | {"warmup_steps": 30})
    assert calibration_steps(warm, DIRECTORY)[0].values["warmup_steps"] == 2


def test_models_whose_gates_are_tuned_may_have_a_training_of_their_own(study_config):
    own = {"steps": 9, "data.builtin_levels": [1, 2]}
    config = study_config(seeds=[2], behaviours=BEHAVIOURS, ablation=ABLATION, gates_train=own)
    steps = by_name(seed_steps(config, DIRECTORY))
    pair = [steps[f"seed-2/{name}"].values for name in ("no-behaviours", "behaviours")]
    assert [values["steps"] for values in pair] == [9, 9]
    assert [values["data"]["builtin_levels"] for values in pair] == [[1, 2], [1, 2]]
    assert ["behaviours" in values for values in pair] == [False, True]
    assert steps["seed-2/mhc-tokens"].values["steps"] == 4
    without = steps["seed-2/gates-without"]
    assert without.needs == ("seed-2/no-behaviours",)
    assert without.values["checkpoint"] == "/studies/tiny/seed-2/no-behaviours"
