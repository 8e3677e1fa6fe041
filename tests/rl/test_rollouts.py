"""Answers and their rewards, and the file that keeps every rollout. The pool is an engine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from evals.problems import load_problems
from mhc_model import DataError
from mhc_model.files import read_lines
from rl.pool import LocalPool
from rl.rollouts import ROLLOUTS, SUPERSEDED, Asker, Rollout, RolloutLog


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


def test_a_line_cut_off_within_a_character_is_set_aside(tmp_path):
    torn = '{"index": 1, "completion": "é'.encode()[:-1]
    (tmp_path / ROLLOUTS).write_bytes(b'{"index": 0}\n' + torn)
    RolloutLog(tmp_path, 1).close()
    assert (tmp_path / ROLLOUTS).read_bytes() == b'{"index": 0}\n'
    assert (tmp_path / SUPERSEDED).read_bytes() == torn + b"\n"
    (tmp_path / ROLLOUTS).write_bytes(torn)
    with pytest.raises(DataError, match="line 1 is not rollout 0"):
        RolloutLog(tmp_path, 1)


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
