"""The environment's contract with RLlib, and the log of rollouts. No Ray: the pool is an engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from pydantic import ValidationError

from evals.tasks.gsm8k import prompt_tokens
from evals.tasks.gsm8k_pure import load_problems
from mhc_model import ConfigError, DataError, Engine
from mhc_model.config import PolicyConfig
from mhc_model.files import read_lines
from mhc_model.policy import prompt_observation
from mhc_model.settings import load_settings
from rl.config import RLConfig
from rl.env import GateVectorEnv, GSM8KGateEnv, ProblemStream
from rl.pool import LocalPool
from rl.rollouts import ROLLOUTS, SUPERSEDED, Asker, Rollout, RolloutLog
from rl.tuning.difficulty import choose_problems

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RL_CONFIGS = sorted([*CONFIGS.glob("*_rl.yaml"), *CONFIGS.glob("rl_*.yaml")])


class CountingPool(LocalPool):
    """Counts the calls."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.calls: list[int] = []

    def run(self, requests):
        self.calls.append(len(requests))
        return super().run(requests)


@pytest.fixture
def asker(checkpoint) -> Asker:
    engine = Engine.from_checkpoint(checkpoint, device="cpu")
    config = RLConfig(name="t", checkpoint=str(checkpoint), max_tokens=6)
    return Asker(CountingPool(engine), engine.tokenizer, config)


def make_env(asker: Asker, directory, envs: int = 3, position: int = 0) -> GateVectorEnv:
    problems = load_problems("builtin:1", "train", 10)
    prompts = [prompt_tokens(asker.tokenizer, problem) for problem in problems]
    return GateVectorEnv(
        envs,
        problems,
        prompt_observation(asker.pool.engine.model, prompts),
        PolicyConfig(action_space="per_layer", n_layers=2, observation_dim=32),
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


def test_rewards_are_the_tasks_scores(asker, tmp_path):
    problems = load_problems("builtin:1", "train", 3)
    right = [problem.answer.split("#### ")[1] for problem in problems]

    class Answering(LocalPool):
        """Runs the model, then puts known answers in the place of its own."""

        def run(self, requests):
            texts = [f" so\n#### {right[0]}", f" it is {right[1]}", " nothing\n#### 98765"]
            return [
                result._replace(completion=replace(result.completion, text=text))
                for result, text in zip(super().run(requests), texts, strict=True)
            ]

    pool = Answering(asker.pool.engine)
    strict = Asker(pool, asker.tokenizer, asker.config)
    flexible = Asker(pool, asker.tokenizer, asker.config.model_copy(update={"reward": "flexible"}))
    assert [rollout.reward for rollout in strict.ask(problems, None)] == [1.0, 0.0, 0.0]
    assert [rollout.reward for rollout in flexible.ask(problems, None)] == [1.0, 1.0, 0.0]


def test_several_answers_to_a_problem_make_a_reward_between_0_and_1(asker):
    config = asker.config.model_copy(update={"samples": 4, "temperature": 2.0})
    problems = load_problems("builtin:1", "train", 2)
    right = [problem.answer.split("#### ")[1] for problem in problems]

    class Answering(LocalPool):
        def run(self, requests):
            texts = [*(f"#### {n}" for n in (right[0], "x", right[0], right[0])), *["none"] * 4]
            return [
                result._replace(completion=replace(result.completion, text=text))
                for result, text in zip(super().run(requests), texts, strict=True)
            ]

    engine = asker.pool.engine
    first, second = Asker(Answering(engine), asker.tokenizer, config).ask(problems, None)
    assert (first.reward, second.reward) == (0.75, 0.0)
    assert [first.completion, *first.others] == [
        f"#### {n}" for n in (right[0], "x", *right[:1] * 2)
    ]
    real = Asker(asker.pool, asker.tokenizer, config).ask(problems, None)
    assert len({real[0].completion, *real[0].others}) == 4, "seeds differ"


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


def test_problems_outside_of_the_window_are_left_out(asker, tmp_path, capsys):
    """The pool answers problem i rightly under i of the 4 gate settings."""
    problems = load_problems("builtin:1", "train", 5)
    golds = [problem.answer.split("#### ")[1] for problem in problems]

    class Answering(CountingPool):
        def run(self, requests):
            probe = len(self.calls)
            return [
                result._replace(
                    completion=replace(result.completion, text=f"#### {gold if i > probe else 'x'}")
                )
                for i, (result, gold) in enumerate(zip(super().run(requests), golds, strict=True))
            ]

    config = asker.config.model_copy(update={"difficulty": (0.25, 0.75)})
    policy = PolicyConfig(action_space="global", n_layers=2, observation_dim=32)
    pool = Answering(asker.pool.engine)
    arguments = (policy, Asker(pool, asker.tokenizer, config), problems)
    assert choose_problems(tmp_path, config, *arguments) == [1, 2, 3]
    assert "3 of 5 problems have a solve rate from 0.25 to 0.75" in capsys.readouterr().out
    assert len(pool.calls) == 4
    assert choose_problems(tmp_path, config, *arguments) == [1, 2, 3]
    assert len(pool.calls) == 4, "rates are measured once"
    narrow = config.model_copy(update={"difficulty": (0.6, 0.7)})
    with pytest.raises(ConfigError, match=r"no problem .* 0.6 to 0.7.*'0.5': 1"):
        choose_problems(tmp_path, narrow, *arguments)
    everything = config.model_copy(update={"difficulty": None})
    assert choose_problems(tmp_path, everything, *arguments) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 2}, "samples is 2 at temperature 0"),
        ({"difficulty": (0.9, 0.1)}, "difficulty 0.9 to 0.1 is no window"),
        ({"observation": "mean_hidden_state"}, "needs a layer"),
        ({"pool": {"replicas": 3, "max_replicas": 2}}, "max_replicas 2 is below replicas 3"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        RLConfig(name="t", checkpoint="none", **fields)


@pytest.mark.parametrize("path", RL_CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load(path):
    config = load_settings(RLConfig, path)
    if path.stem in ("rl_published", "rl_plan"):  # its earlier name
        assert (config.rollouts, config.ppo.minibatch, config.ppo.epochs) == (1024, 64, 10)
        assert (config.ppo.lr, config.ppo.gamma, config.ppo.entropy) == (3e-4, 0.99, 0.1)


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


def test_a_log_that_lacks_rollouts_is_refused(tmp_path):
    (tmp_path / "rollouts.jsonl").write_text('{"index": 0}\n{"index": 2}\n')
    with pytest.raises(DataError, match="line 2 is not rollout 1"):
        RolloutLog(tmp_path, 2)
    (tmp_path / "rollouts.jsonl").write_text('{"index": 0}\n{"index": 1}\n')
    with pytest.raises(DataError, match="has 2 rollouts; the saved state has 3"):
        RolloutLog(tmp_path, 3)


def test_a_line_cut_off_by_a_kill_is_set_aside(tmp_path):
    (tmp_path / "rollouts.jsonl").write_text('{"index": 0}\n{"ind')
    RolloutLog(tmp_path, 1).close()
    assert (tmp_path / "rollouts.jsonl").read_text() == '{"index": 0}\n'
    assert (tmp_path / "rollouts.superseded.jsonl").read_text() == '{"ind\n'


def test_sampled_answers_depend_on_the_seed_of_the_run(asker):
    problems = load_problems("builtin:1", "train", 4)

    def answers(seed: int, temperature: float = 1.0, first_index: int = 0) -> list[str]:
        fields = {"seed": seed, "temperature": temperature}
        own = Asker(asker.pool, asker.tokenizer, asker.config.model_copy(update=fields))
        return [rollout.completion for rollout in own.ask(problems, None, first_index)]

    assert answers(0) == answers(0)
    assert answers(0) != answers(1)
    assert answers(0, first_index=1) != answers(1, first_index=0), "not the sum of the two"
    assert answers(0, temperature=0.0) == answers(1, temperature=0.0)


def test_what_splits_lines_elsewhere_splits_none_here(tmp_path):
    completion = "a\u0085b\u2028c\u2029d"
    rollout = Rollout(0, 1, "train-00000", (0.5, 0.5), completion, "stop", 3, 0.0, 0, 1)
    log = RolloutLog(tmp_path, 0)
    log.write([rollout, replace(rollout, index=1)])
    log.close()
    RolloutLog(tmp_path, 1).close()
    lines = [(tmp_path / name).read_bytes() for name in (ROLLOUTS, SUPERSEDED)]
    assert [json.loads(line)["completion"] for line in lines] == [completion] * 2
    assert [json.loads(line)["index"] for line in read_lines(tmp_path / ROLLOUTS)] == [0]


def test_a_line_cut_off_within_a_character_is_set_aside(tmp_path):
    torn = '{"index": 1, "completion": "é'.encode()[:-1]
    (tmp_path / ROLLOUTS).write_bytes(b'{"index": 0}\n' + torn)
    RolloutLog(tmp_path, 1).close()
    assert (tmp_path / ROLLOUTS).read_bytes() == b'{"index": 0}\n'
    assert (tmp_path / SUPERSEDED).read_bytes() == torn + b"\n"
    (tmp_path / ROLLOUTS).write_bytes(torn)
    with pytest.raises(DataError, match="line 1 is not rollout 0"):
        RolloutLog(tmp_path, 1)
