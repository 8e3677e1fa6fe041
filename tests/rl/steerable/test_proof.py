"""The steerability proof from end to end on a small scale, with every kind of arm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mhc_model import ConfigError
from mhc_model.settings import load_settings
from rl.ablate.__main__ import main as ablate_main
from rl.steerable import (
    SteerableConfig,
    Variant,
    all_problems,
)
from rl.steerable.__main__ import main
from rl.steerable.proof import _write_problems

pytestmark = pytest.mark.ray
SHIPPED = Path("configs/steerable.yaml")


def small(storage: Path, ray_address: str) -> dict:
    values = load_settings(SteerableConfig, SHIPPED).model_dump(mode="json")
    ablation = values["ablation"]
    ablation |= {"seeds": [0], "iterations": 6, "checkpoint_every": 6, "grid": [0.0, 1.0]}
    ablation["pool"] |= {"replicas": 1}
    ablation["ray"] |= {"address": ray_address}
    return {
        **values,
        "storage": str(storage),
        "test_problems": 200,
        "model": values["model"] | {"n_layers": 2, "keys": [0, 1], "steps": 250},
        "variants": {"by_problem": {"red": [1, 1], "blue": [0, 0], "spaces": ["global"]}},
        "ablation": ablation,
    }


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, ray_head) -> Path:
    directory = tmp_path_factory.mktemp("proof")
    path = directory / "small.yaml"
    path.write_text(yaml.safe_dump(small(directory, ray_head.address)))
    return path


@pytest.fixture(scope="module")
def proof(config_file) -> Path:
    assert main(["--config", str(config_file)]) == 0, "what was promised does not hold"
    return config_file.parent / "steerable"


@pytest.fixture(scope="module")
def results(proof) -> dict:
    return json.loads((proof / "ablations" / "by_problem" / "results.json").read_text())


@pytest.mark.slow
def test_ppo_gives_each_problem_its_gates_and_no_constant_can(proof):
    (check,) = json.loads((proof / "proof.json").read_text())
    assert check["run"] == "ppo:global seed 0"
    assert check["known"] > 0.97, "the model obeys its gates"
    assert 0.4 < check["learned"] < 0.6, "the learned gates are right for blue things"
    assert check["recovered"] >= 0.9
    assert check["p_value"] < 0.01
    assert check["best_constant"] < 0.65
    assert check["constant_p"] < 0.01
    assert "by_problem" in (proof / "proof.md").read_text()


@pytest.mark.slow
def test_every_arm_had_the_same_budget_and_problems(proof, results):
    assert results["budget"] == 6 * 256
    assert results["n"] == 200
    arms = results["arms"]
    given = ["learned", "g=0", "g=1", "known"]
    learning = ["best_constant", "random", "cem", "reinforce", "gradient", "gradient_contextual"]
    assert list(arms) == [*given, "ppo:global", *learning]
    for name in ("ppo:global", "best_constant", "cem", "reinforce"):
        assert arms[name]["rollouts"] == 6 * 256, name
        lines = rollouts_of(proof, name).read_text().splitlines()
        assert [json.loads(line)["index"] for line in lines] == list(range(6 * 256)), name
    assert arms["gradient"]["sequences"] == arms["gradient_contextual"]["sequences"] == 6 * 256
    assert all(arms[name]["rollouts"] == 0 for name in [*given, "random"])


def rollouts_of(proof: Path, name: str) -> Path:
    directory = proof / "ablations" / "by_problem"
    if name == "ppo:global":
        return directory / "runs" / "ppo-global-seed0" / "rollouts.jsonl"
    return directory / "arms" / f"{name}-seed0" / "rollouts.jsonl"


@pytest.mark.slow
def test_constants_cannot_and_contextual_gradients_can(results):
    arms = results["arms"]
    for name in ("g=0", "g=1", "best_constant", "cem", "gradient"):
        assert arms[name]["accuracy"] < 0.65, name
    assert arms["gradient_contextual"]["accuracy"] > 0.9
    assert results["bound"]["accuracy"] > 0.97, "g=0 and g=1 together solve all"


@pytest.mark.slow
def test_tests_are_paired_and_corrected(results):
    ppo = next(test for test in results["tests"] if test["second"] == "ppo:global seed 0")
    assert ppo["first"] == "learned"
    assert ppo["won"] - ppo["lost"] == pytest.approx(200 * ppo["difference"])
    assert ppo["p"] < ppo["p_holm"] < 0.01
    low, high = ppo["difference_95"]
    assert 0.3 < low < ppo["difference"] < high


@pytest.mark.slow
def test_the_report_and_its_pictures(proof):
    directory = proof / "ablations" / "by_problem"
    report = (directory / "ablation.md").read_text()
    assert "ppo:global" in report
    assert "p, Holm" in report
    for name in ("fixed_gates", "gates-ppo-global", "accuracy-ppo-global", "gates-cem"):
        assert f"pictures/{name}.png" in report
        for ending in ("png", "svg"):
            assert (directory / "pictures" / f"{name}.{ending}").stat().st_size > 1000
    assert (directory / "ablation.html").read_text().count("data:image/svg+xml") >= 4
    assert yaml.safe_load((directory / "config.yaml").read_text())["rollouts"] == 256


@pytest.mark.slow
def test_what_is_done_is_kept(proof, config_file, capfd):
    """A second start learns nothing, asks nothing and starts no Ray."""
    arms = proof / "ablations" / "by_problem" / "arms"
    before = {path: path.stat().st_mtime_ns for path in arms.glob("*/arm.json")}
    answers = {path: path.read_text() for path in arms.glob("*/samples.jsonl")}
    assert main(["--config", str(config_file)]) == 0
    output = capfd.readouterr()
    assert "learns" not in output.out
    assert "Started a local Ray instance" not in output.err
    assert "Connecting to existing Ray cluster" not in output.err
    assert {path: path.stat().st_mtime_ns for path in arms.glob("*/arm.json")} == before
    assert {path: path.read_text() for path in arms.glob("*/samples.jsonl")} == answers


@pytest.mark.slow
def test_another_ablation_of_the_same_name_is_refused(proof, capsys):
    saved = str(proof / "ablations" / "by_problem" / "config.yaml")
    held_out = str(proof / "problems" / "by_problem" / "test.jsonl")
    assert ablate_main(["--config", saved, "--iterations", "7"]) == 2
    assert "iterations: 6 -> 7" in capsys.readouterr().err
    assert ablate_main(["--config", saved, "--data", held_out]) == 2
    assert "held-out questions are also training questions" in capsys.readouterr().err


def test_a_variant_keeps_what_it_wants(checkpoint, tmp_path):
    config = load_settings(SteerableConfig, SHIPPED)
    problems = all_problems(0)[:6]
    first = Variant(red=(1, 1, 1), blue=(0, 0, 0), spaces=("global",))
    more = first.model_copy(update={"spaces": ("global", "per_layer")})
    for variant in (first, more):
        _write_problems(config, variant, checkpoint, tmp_path / "v", problems[:3], problems[3:])
    other = first.model_copy(update={"blue": (0, 0, 1)})
    before = (tmp_path / "v" / "train.jsonl").read_text()
    with pytest.raises(ConfigError, match="variant v was started with other problems"):
        _write_problems(config, other, checkpoint, tmp_path / "v", problems[:3], problems[3:])
    assert (tmp_path / "v" / "train.jsonl").read_text() == before
