"""Running steps: lanes, order, failures; and a whole tiny study that is killed and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from examples.study import Runner, Step, StepFailed, run_study
from mhc_model import ConfigError

ROOT = Path(__file__).parents[3]


def evaluation(name: str, needs: tuple[str, ...] = (), **values) -> Step:
    """A real command: `python -m evals` of a checkpoint that is not there fails at once."""
    values = {"checkpoint": "/nowhere", "out": "/nowhere/out"} | values
    return Step(name, "evals", values, f"{name}/results.json", needs, 0, 1.0)


def test_a_failed_step_says_why_and_nothing_is_begun_after_it(tmp_path):
    runner = Runner(tmp_path, 1)
    steps = [evaluation("seed-0/a"), evaluation("seed-0/b", ("seed-0/a",)), evaluation("seed-0/c")]
    with pytest.raises(StepFailed, match=r"(?s)seed-0/a ended with 2.*error: /nowhere"):
        runner.run(steps, {})
    assert (tmp_path / "steps" / "seed-0" / "a.log").read_text().startswith("$ python -m evals")
    assert not (tmp_path / "steps" / "seed-0" / "c.log").exists()
    assert not runner.is_whole(steps[0])


def test_what_is_whole_is_not_run_again_and_what_lost_its_result_is(tmp_path):
    runner = Runner(tmp_path, 1)
    step = evaluation("seed-0/a")
    (tmp_path / "steps" / "seed-0").mkdir(parents=True)
    (tmp_path / "steps" / "seed-0" / "a.json").write_text(json.dumps({"seconds": 3.0}))
    (tmp_path / "seed-0" / "a").mkdir(parents=True)
    (tmp_path / step.result).write_text("{}")
    runner.run([step], {})
    assert runner.seconds(step) == 3.0
    (tmp_path / step.result).unlink()
    with pytest.raises(StepFailed):
        runner.run([step], {})


def test_the_rest_is_estimated_by_what_the_same_steps_of_other_seeds_took(tmp_path):
    runner = Runner(tmp_path, 2)
    steps = [evaluation(f"seed-{seed}/a") for seed in range(4)] + [evaluation("seed-3/b")]
    for step, seconds in zip(steps, (10.0, 30.0), strict=False):
        (tmp_path / "steps" / step.name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "steps" / f"{step.name}.json").write_text(json.dumps({"seconds": seconds}))
        (tmp_path / step.name).mkdir(parents=True)
        (tmp_path / step.result).write_text("{}")
    runner.run(steps[:2], {})
    # Two of 20 s each and one known to take 7 s, in two lanes.
    assert runner.left(steps[2:], {"seed-3/b": 7.0}, 2) == (20.0 + 20.0 + 7.0) / 2


def test_a_report_of_no_study_and_a_changed_study_are_refused(study_config, tmp_path):
    config = study_config()
    with pytest.raises(ConfigError, match="there is no study"):
        run_study(config.model_copy(update={"report_only": True}))
    directory = tmp_path / "tiny"
    directory.mkdir()
    saved = config.model_dump(mode="json")
    (directory / "config.yaml").write_text(yaml.safe_dump(saved))
    for name, value in (("train", config.train | {"steps": 5}), ("evals", {"limit": 7})):
        other = config.model_copy(update={name: value})
        with pytest.raises(ConfigError, match=rf"study tiny exists in .*{name}\.\w+: .* -> "):
            run_study(other)
    # More seeds are the same study, and a report of what is there runs nothing.
    more = config.model_copy(update={"seeds": (0, 1, 2), "report_only": True})
    assert run_study(more) == directory
    assert "0 of 3 seeds are whole" in (directory / "study.md").read_text()


def test_a_command_that_refuses_its_configuration_is_found_before_anything_runs(study_config):
    odd = {"plain": {"model.mhc": None}, "mhc": {}, "odd": {"model.mhc.streams": 2}}
    config = study_config(variants=odd)
    with pytest.raises(ConfigError, match=r"seed-0/odd-tokens: .*unknown key 'model.mhc.streams'"):
        run_study(config)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_step_where_it_was(study_config, tmp_path, on_ray_head):
    config = study_config(seeds=[0])
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "examples.study", "--config", str(path)]
    directory, steps = tmp_path / "tiny", tmp_path / "tiny" / "steps"
    first = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 300
    # Its first training has saved something, and is not done.
    while not list(directory.glob("seed-0/*/metrics.jsonl")):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM, said
    assert "0 of 1 seeds are whole" in said
    calibrated = (directory / "calibration.json").read_text()
    done = {path.name for path in steps.rglob("seed-0/*.json")}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 of 1 seeds are whole" in again.stdout
    assert (directory / "calibration.json").read_text() == calibrated
    names = ("plain-tokens", "mhc-tokens", "plain-time")
    expected = {f"{name}{kind}.json" for name in names for kind in ("", "-evals")}
    assert {path.name for path in steps.rglob("seed-0/*.json")} == expected > done
    assert "one seed, which shows nothing" in (directory / "study.md").read_text()
    # The third start has nothing to do.
    third = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "6 of 6 steps are whole already" in third.stdout
