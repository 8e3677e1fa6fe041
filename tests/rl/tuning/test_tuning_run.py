"""`python -m rl` from end to end on a tiny model: results, resuming, refusals, no Ray to load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from fastapi.testclient import TestClient
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import arguments_for

from evals.gate_choice import GateChoice
from evals.problems import load_problems
from evals.tasks import prompt_tokens
from mhc_model import ConfigError, DataError, Engine
from mhc_model.config import PolicyConfig
from mhc_model.files import read_lines
from mhc_model.gates import gate_names
from mhc_model.policy import GatePolicy, expand_actions, observe_prompts
from rl.__main__ import main
from rl.config import RLConfig
from rl.ppo import GateBeta
from rl.tuning.run import is_complete, kept_rows, prepare_directory, save, saved_states
from serve.app import create_app
from serve.service import CompletionService

pytestmark = pytest.mark.ray
IDLE = ("learner_idle", "pool_utilisation")
BOARD = {f"rl/{name}" for name in ("reward", "entropy", "kl", "explained_variance", *IDLE)}
BOARD |= {"rl/rollouts_per_second", "rl/pool_idle", "replica_utilisation/replica-0"}
BOARD |= {f"gate_{what}/{gate}" for what in ("mean", "std") for gate in gate_names(2)}


@pytest.fixture(scope="module")
def survivor(checkpoint, tmp_path_factory, engine_kind) -> Path:
    """A run of 8 iterations in a process of its own, whose replica was killed twice."""
    storage, ray_directory = tmp_path_factory.mktemp("survivor"), tempfile.mkdtemp(prefix="r-")
    arguments = arguments_for(checkpoint, storage, ray_directory, engine_kind)
    command = [sys.executable, "-m", "rl", *arguments]
    run = subprocess.Popen(
        [*command, "--iterations", "8"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for count in (16, 80):
            wait_for_replica(run, storage / "tiny" / "rollouts.jsonl", count).kill()
        output, _ = run.communicate(timeout=240)
    finally:
        run.kill()
        shutil.rmtree(ray_directory, ignore_errors=True)
    assert run.returncode == 0, output
    return storage / "tiny"


@pytest.mark.slow
def test_a_replica_killed_during_a_run_loses_no_episode(survivor):
    assert [row["index"] for row in rows(survivor / "rollouts.jsonl")] == list(range(128))
    last = rows(survivor / "metrics.jsonl")[-1]
    assert last["restarted"] == 2
    assert last["lost"] == 0
    assert last["completed"] == last["requested"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    arguments, tmp_path, survivor, on_ray_head, capfd
):
    directory = tmp_path / "tiny"
    assert main([*arguments, "--iterations", "2"]) == 0
    first = rows(directory / "rollouts.jsonl")
    assert main([*arguments, "--iterations", "8"]) == 0
    output = capfd.readouterr().out
    assert "resuming after iteration 2, rollout 32" in output
    assert "128 rollouts, mean reward" in output
    assert "lost 0" in output

    rollouts = rows(directory / "rollouts.jsonl")
    assert rollouts[:32] == first, "resuming overwrites nothing"
    assert [row["iteration"] for row in rollouts] == [n for n in range(1, 9) for _ in range(16)]
    assert all(len(row["gates"]) == 4 and row["reward"] in (0.0, 1.0) for row in rollouts)
    whole = rows(survivor / "rollouts.jsonl")
    versions = [row["policy_version"] for row in rollouts]
    assert versions == [max(0, n - 2) for n in range(1, 9) for _ in range(16)], "one update behind"
    for key in ("index", "iteration", "problem", "reward"):
        assert [row[key] for row in rollouts] == [row[key] for row in whole], key
    # An untrained model's rewards may all be 0: the answers tell. A rounding may flip one of them.
    answers = [
        (row["completion"], other["completion"]) for row, other in zip(rollouts, whole, strict=True)
    ]
    assert len(set(answers)) > 64, "answers differ from each other"
    assert sum(own == other for own, other in answers) >= 0.95 * len(answers)
    # Not bitwise: what a matrix product rounds to depends on where its operands lie in memory.
    gates = torch.tensor([row["gates"] for row in rollouts])
    expected = torch.tensor([row["gates"] for row in whole])
    torch.testing.assert_close(gates, expected, atol=1e-4, rtol=0)

    metrics = rows(directory / "metrics.jsonl")
    assert [row["iteration"] for row in metrics] == list(range(1, 9))
    assert [row["completed"] for row in metrics[2:]] == sorted(
        row["completed"] for row in metrics[2:]
    )
    assert metrics[-1]["completed"] >= 128 + 2 * 8, "counters go on where the saved state was"
    assert all(0.0 < row[key] <= 1.0 for row in metrics for key in IDLE)
    assert board_names(directory) >= BOARD
    summary = json.loads((directory / "summary.json").read_text())["summary"]
    assert {"learned", "g=0", "g=0.5", "g=1", "policy"} < set(summary)
    assert list(directory.glob("tensorboard/events*"))

    assert main([*arguments, "--iterations", "8"]) == 0
    assert "complete at iteration 8" in capfd.readouterr().out
    assert main([*arguments, "--iterations", "8", "--seed", "5"]) == 2
    assert "seed: 0 -> 5" in capfd.readouterr().err


@pytest.mark.slow
def test_the_exported_policy_gives_the_same_gates_everywhere(survivor, checkpoint):
    """In RLlib, in this package, in an evaluation and over HTTP."""
    policy = GatePolicy.load(survivor / "policy")
    engine = Engine.from_checkpoint(checkpoint, device="cpu")
    problems = load_problems("builtin:1", "test", 12)
    prompts = [prompt_tokens(engine.tokenizer, problem) for problem in problems]
    expected = policy.gates_for_prompts(engine.model, prompts)
    assert expected.std(dim=0).max() > 1e-5, "prompts get different gates"

    trained = saved_states(survivor)[-1] / "algorithm" / "learner_group" / "learner" / "rl_module"
    module = RLModule.from_checkpoint(trained / "default_policy")
    observations = observe_prompts(engine.model, prompts, policy.config)
    with torch.no_grad():
        inputs = module.forward_inference({Columns.OBS: observations})
    chosen = GateBeta.from_logits(inputs[Columns.ACTION_DIST_INPUTS]).to_deterministic().sample()
    in_rllib = expand_actions(chosen, policy.config)
    in_evals = GateChoice(f"policy:{survivor / 'policy'}").rows(engine, prompts)
    service = CompletionService(engine, "mhc", policy=policy)
    body = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "gates": "policy"}
    try:
        answer = TestClient(create_app(service)).post("/v1/completions", json=body).json()
    finally:
        service.close()
    in_serve = torch.tensor([choice["gates"] for choice in answer["choices"]])
    for gates in (in_rllib, in_evals, in_serve):
        torch.testing.assert_close(gates, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_exported_policy_needs_no_ray(survivor):
    gates = gates_without_ray(survivor / "policy")
    policy = GatePolicy.load(survivor / "policy")
    with torch.no_grad():
        expected = policy.gates(torch.linspace(-1, 1, policy.config.observation_dim)[None])
    assert gates == pytest.approx(expected[0].tolist(), abs=1e-6)


@pytest.mark.slow
def test_gates_of_prompt_and_answer_are_learned_at_a_cost_of_tokens(
    named_checkpoint, tmp_path, short_directory, engine_kind
):
    arguments = arguments_for(named_checkpoint, tmp_path, short_directory, engine_kind)
    arguments += ["--action-space", "prompt_and_answer", "--token-cost", "0.01"]
    assert main([*arguments, "--iterations", "1", "--sweep", "0.5", "worked"]) == 0
    directory = tmp_path / "tiny"
    made = rows(directory / "rollouts.jsonl")
    for row in made:
        assert len(set(row["gates"])) == len(set(row["answer_gates"])) == 1
        assert row["reward"] == pytest.approx(row["right"] - 0.01 * row["tokens"])
    (metrics,) = rows(directory / "metrics.jsonl")
    assert metrics["tokens"] == pytest.approx(sum(row["tokens"] for row in made) / 16)
    assert metrics["reward"] == pytest.approx(metrics["accuracy"] - 0.01 * metrics["tokens"])
    assert len(metrics["answer_gate_mean"]) == 4
    assert {"rl/accuracy", "rl/tokens", "answer_gate_mean/layer0.mlp"} <= board_names(directory)
    policy = GatePolicy.load(directory / "policy")
    assert policy.config.n_actions == 2
    with torch.no_grad():
        assert policy.gates(torch.zeros(3, 32)).shape == (3, 2, 4)
    summary = json.loads((directory / "summary.json").read_text())["summary"]
    assert {"learned", "g=0.5", "worked", "policy"} < set(summary)
    for label in ("learned", "policy"):
        own = summary[label]
        assert own["reward"] == pytest.approx(own["accuracy"] - 0.01 * own["tokens"])


@pytest.mark.slow
def test_a_run_on_likelihood_generates_nothing_and_goes_on(arguments, tmp_path, capfd):
    """Problems whose answers an untrained model never finds still tell gates apart."""
    directory = tmp_path / "tiny"
    arguments += ["--reward", "likelihood", "--observation", "mean_prompt_embedding"]
    arguments += ["--observation-layer", "None", "--sweep", "0.5"]
    assert main([*arguments, "--iterations", "1"]) == 0
    assert main([*arguments, "--iterations", "2"]) == 0
    assert "resuming after iteration 1, rollout 16" in capfd.readouterr().out
    made = rows(directory / "rollouts.jsonl")
    assert len({row["reward"] for row in made}) == 32, "dense"
    assert all(row["reward"] == row["loglikelihood"] < 0 for row in made)
    assert all(row["right"] is row["tokens"] is row["completion"] is None for row in made)
    last = rows(directory / "metrics.jsonl")[-1]
    assert last["loglikelihood"] == last["reward"]
    assert not {"accuracy", "tokens"} & set(last)
    summary = json.loads((directory / "summary.json").read_text())["summary"]
    assert summary["policy"]["tokens"] > 0, "what is compared is also answered"
    assert summary["policy"]["reward"] == summary["policy"]["loglikelihood"]


def test_other_weights_or_problems_are_refused_and_change_nothing(tmp_path):
    config = RLConfig(name="t", checkpoint="first")
    policy = PolicyConfig(
        action_space="global", n_layers=2, observation_dim=32, checkpoint_hash="one"
    )
    problems = load_problems("builtin:1", "train", 3)
    prepare_directory(tmp_path, config, policy, problems)
    before = (tmp_path / "config.yaml").read_text()
    state = tmp_path / "state" / "iteration-000001"
    state.mkdir(parents=True)
    (state / "state.json").write_text('{"iteration": 1, "position": 16, "checkpoint": "one"}')
    other = config.model_copy(update={"checkpoint": "second"})
    changed = policy.model_copy(update={"checkpoint_hash": "two"})
    with pytest.raises(ConfigError, match="started on checkpoint one, not on two"):
        prepare_directory(tmp_path, other, changed, problems)
    assert (tmp_path / "config.yaml").read_text() == before
    found = prepare_directory(tmp_path, other, policy, problems)  # its state names no problems
    assert found["position"] == 16
    (state / "state.json").write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=r"started on problems [0-9a-f]+, not on"):
        prepare_directory(tmp_path, other, policy, load_problems("builtin:2", "train", 3))
    prepare_directory(tmp_path, other, policy, problems)


def test_metrics_of_a_resumed_run_are_those_of_its_iterations(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iter')
    assert kept_rows(path, 2) == ['{"iteration": 1}', '{"iteration": 2}']
    with pytest.raises(DataError, match="line 3 is not iteration 3"):
        kept_rows(path, 3)
    path.write_text('{"iteration": 1}\n')
    with pytest.raises(DataError, match="has 1 iterations; the saved state has 2"):
        kept_rows(path, 2)


def test_a_run_without_its_summary_is_not_complete(tmp_path):
    config = RLConfig(name="t", checkpoint="none", iterations=2)
    state = {"iteration": 2, "position": 32}
    assert not is_complete(tmp_path, config, state), "killed before the last comparison"
    (tmp_path / "summary.json").write_text('{"rollouts": 16}')
    assert not is_complete(tmp_path, config, state), "the summary is of fewer iterations"
    (tmp_path / "summary.json").write_text('{"rollouts": 32}')
    assert is_complete(tmp_path, config, state)
    assert not is_complete(tmp_path, config, {"iteration": 1, "position": 32})


def wait_for_replica(run: subprocess.Popen, rollouts: Path, count: int) -> psutil.Process:
    """The replica's process, once so many episodes are in."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and run.poll() is None:
        if rollouts.exists() and rollouts.read_bytes().count(b"\n") >= count:
            for process in psutil.Process(run.pid).children(recursive=True):
                if "ray::Replica" in " ".join(process.cmdline()):
                    return process
        time.sleep(0.05)
    run.kill()
    raise AssertionError(f"no replica at work: {run.communicate()[0]}")


def gates_without_ray(policy: Path) -> list[float]:
    """Loads the policy in a Python where importing Ray or RLlib fails."""
    script = (
        "import sys\n"
        "sys.modules['ray'] = None\n"
        "import torch\n"
        "from mhc_model.policy import GatePolicy\n"
        "policy = GatePolicy.load(sys.argv[1])\n"
        "observation = torch.linspace(-1, 1, policy.config.observation_dim)[None]\n"
        "print(policy.gates(observation)[0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(policy)],
        capture_output=True,
        text=True,
        check=True,
    )
    gates = json.loads(done.stdout)
    assert len(gates) == 4
    assert all(0.0 < gate < 1.0 for gate in gates)
    return gates


def board_names(directory: Path) -> set[str]:
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return set(events.Tags()["scalars"])


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in read_lines(path)]


def test_a_policy_that_diverged_is_not_saved(tmp_path, monkeypatch):
    policy = GatePolicy(
        PolicyConfig(action_space="global", n_layers=2, observation_dim=4, checkpoint_hash="one")
    )
    with torch.no_grad():
        next(policy.parameters()).view(-1)[0] = float("nan")
    monkeypatch.setattr("rl.tuning.run.current_policy", lambda algorithm: policy)
    config = RLConfig(name="t", checkpoint="first")
    with pytest.raises(ConfigError, match="iteration 3: the policy's weights are not finite"):
        save(config, tmp_path, None, {"iteration": 3})
    assert list(tmp_path.iterdir()) == []
