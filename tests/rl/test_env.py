"""The environment's contract with RLlib and with gymnasium. No Ray: the pool is an engine."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from evals.problems import load_problems
from evals.tasks import prompt_tokens
from mhc_model.config import PolicyConfig
from mhc_model.policy import prompt_observation
from rl.env import GateVectorEnv, GSM8KGateEnv, ProblemStream
from rl.rollouts import Asker, RolloutLog


def make_env(
    asker: Asker, directory, envs: int = 3, position: int = 0, space: str = "per_layer"
) -> GateVectorEnv:
    problems = load_problems("builtin:1", "train", 10)
    prompts = [prompt_tokens(asker.tokenizer, problem) for problem in problems]
    return GateVectorEnv(
        envs,
        problems,
        prompt_observation(asker.pool.engine.model, prompts),
        PolicyConfig(action_space=space, n_layers=2, observation_dim=32),
        asker,
        RolloutLog(directory, position),
        seed=7,
        position=position,
    )


def test_a_step_is_one_pool_call_and_the_reset_step_is_none(asker, tmp_path):
    env = make_env(asker, tmp_path)
    first, _ = env.reset()
    actions = np.array([[0.0, 1.0], [0.25, 0.75], [1.0, 0.5]], dtype=np.float32)
    final, rewards, terminated, truncated, _ = env.step(actions)
    assert asker.pool.calls == [3]
    assert terminated.all()
    assert not truncated.any()
    assert set(rewards) <= {0.0, 1.0}
    np.testing.assert_array_equal(first, final)
    shown, rewards, terminated, truncated, _ = env.step(actions)
    assert asker.pool.calls == [3], "the pool is not called to reset"
    assert not rewards.any()
    assert not terminated.any()
    assert not np.array_equal(shown, final)
    assert env.observation_space.contains(shown)
    used = [rollout.gates for rollout in env.recent]
    assert used == [(0.0, 0.0, 1.0, 1.0), (0.25, 0.25, 0.75, 0.75), (1.0, 1.0, 0.5, 0.5)]


@pytest.mark.parametrize(
    ("space", "action", "gates"),
    [
        ("global", [0.25], (0.25, 0.25, 0.25, 0.25)),
        ("per_layer", [0.25, 0.75], (0.25, 0.25, 0.75, 0.75)),
        ("per_sublayer", [0.0, 0.25, 0.75, 1.0], (0.0, 0.25, 0.75, 1.0)),
    ],
)
def test_a_configured_action_space_decides_what_an_action_sets(checkpoint, space, action, gates):
    env = GSM8KGateEnv.from_checkpoint(checkpoint, problems=2, max_tokens=2, action_space=space)
    assert env.action_space.shape == (len(action),)
    env.reset()
    assert env.step(np.array(action, dtype=np.float32))[-1]["gates"] == gates


def test_prompt_and_answer_are_two_actions(checkpoint, asker, tmp_path):
    fields = {"problems": 2, "max_tokens": 4, "action_space": "prompt_and_answer"}
    env = GSM8KGateEnv.from_checkpoint(checkpoint, **fields)
    assert env.action_space.shape == (2,)
    env.reset()
    info = env.step(np.array([0.25, 0.75], dtype=np.float32))[-1]
    assert (info["gates"], info["answer_gates"]) == ((0.25,) * 4, (0.75,) * 4)
    vector = make_env(asker, tmp_path, space="prompt_and_answer")
    vector.reset()
    vector.step(np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]], dtype=np.float32))
    used = [(rollout.gates[0], (rollout.answer_gates or (None,))[0]) for rollout in vector.recent]
    assert used == [(0.0, 1.0), (1.0, 0.0), (0.5, None)]


def test_rewards_are_less_the_cost_of_tokens(checkpoint):
    env = GSM8KGateEnv.from_checkpoint(
        checkpoint, problems=2, max_tokens=8, action_space="global", token_cost=0.125
    )
    env.reset()
    _, reward, *_, info = env.step(np.array([0.5], dtype=np.float32))
    assert reward == info["reward"] == info["right"] - 0.125 * info["tokens"]
    assert info["tokens"] > 0


def test_the_single_environment_passes_gymnasiums_checker(checkpoint, recwarn):
    env = GSM8KGateEnv.from_checkpoint(checkpoint, problems=12, max_tokens=6, action_space="global")
    check_env(env, skip_render_check=True)
    assert not [str(warning.message) for warning in recwarn if "WARN" in str(warning.message)]
    observation, info = env.reset(seed=5)
    assert env.observation_space.contains(observation)
    final, reward, terminated, truncated, info = env.step(np.array([0.25], dtype=np.float32))
    assert np.array_equal(final, observation)
    assert (terminated, truncated) == (True, False)
    assert reward in (0.0, 1.0)
    assert info["gates"] == (0.25, 0.25, 0.25, 0.25)
    with pytest.raises(ResetNeeded):
        env.step(np.array([0.25], dtype=np.float32))
    shown = [env.reset()[1]["problem"], env.reset(seed=5)[1]["problem"]]
    assert shown[1] == info["problem"] != shown[0], "a seed begins its sequence again"


def test_problems_are_a_function_of_seed_and_position():
    stream = ProblemStream(5, seed=3)
    whole = stream.indices(0, 12)
    assert sorted(whole[:5]) == sorted(whole[5:10]) == list(range(5))
    assert stream.indices(4, 5) == whole[4:9]
    assert ProblemStream(5, seed=4).indices(0, 12) != whole


def test_a_resumed_environment_goes_on_where_it_was(asker, tmp_path):
    actions = np.full((3, 2), 0.5, dtype=np.float32)
    env = make_env(asker, tmp_path)
    env.reset()
    for _ in range(3):
        env.step(actions)
    expected = [rollout.problem for rollout in env.recent]
    assert env.position == 6
    (tmp_path / "again").mkdir()
    lines = (tmp_path / "rollouts.jsonl").read_text().splitlines()
    (tmp_path / "again" / "rollouts.jsonl").write_text("".join(f"{line}\n" for line in lines))
    again = make_env(asker, tmp_path / "again", position=3)
    again.reset()
    again.step(actions)
    assert [rollout.problem for rollout in again.recent] == expected[3:]
    rows = [json.loads(s) for s in (tmp_path / "again" / "rollouts.jsonl").open()]
    assert [row["index"] for row in rows] == list(range(6))
    superseded = (tmp_path / "again" / "rollouts.superseded.jsonl").read_text().splitlines()
    assert superseded == lines[3:], "what is done again is set aside, not overwritten"
