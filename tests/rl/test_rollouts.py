"""Answers and their rewards, and the file that keeps every rollout. The pool is an engine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from evals.problems import load_problems
from evals.tasks import prompt_tokens
from mhc_model import DataError, load_checkpoint
from mhc_model.files import read_lines
from rl.baselines import AnswerLoss
from rl.pool import LocalPool
from rl.rollouts import ROLLOUTS, SUPERSEDED, Asker, Rollout, RolloutLog, reward_of


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
    flexible = Asker(
        pool, asker.tokenizer, asker.config.model_copy(update={"extraction": "flexible"})
    )
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


def test_tokens_cost_what_is_said_of_the_answers_mean(asker):
    """Four answers to a problem, cut by the limit of 6 tokens or earlier."""
    update = {"samples": 4, "temperature": 2.0, "token_cost": 0.01}
    problems = load_problems("builtin:1", "train", 3)
    config = asker.config.model_copy(update=update)
    for rollout in Asker(asker.pool, asker.tokenizer, config).ask(problems, None):
        assert 0 < rollout.tokens <= 24
        assert rollout.tokens_per_answer == rollout.tokens / 4
        assert rollout.reward == pytest.approx(rollout.right - 0.01 * rollout.tokens / 4)
        assert rollout.loglikelihood is None


def test_the_likelihood_is_of_the_problems_own_answer_under_the_rollouts_gates(asker, checkpoint):
    problems = load_problems("builtin:1", "train", 4)
    gates = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    loaded = load_checkpoint(checkpoint)
    loss = AnswerLoss(loaded.model, loaded.tokenizer, problems)
    expected = [-float(loss([i], gates[i : i + 1])) for i in range(4)]
    config = asker.config.model_copy(update={"reward": "likelihood"})
    rollouts = Asker(asker.pool, asker.tokenizer, config).ask(problems, gates)
    assert asker.pool.calls == [4], "nothing is generated"
    for rollout, likelihood, row in zip(rollouts, expected, gates.tolist(), strict=True):
        assert rollout.reward == rollout.loglikelihood == pytest.approx(likelihood, abs=1e-4)
        assert rollout.gates == pytest.approx(row)
        measured = (rollout.right, rollout.tokens, rollout.completion, rollout.finish_reason)
        assert measured == (None, None, None, None)


@pytest.mark.parametrize("reward", ["answer", "likelihood"])
def test_both_are_logged_where_asked_for(asker, tmp_path, reward):
    problems = load_problems("builtin:1", "train", 3)
    fields = {"reward": reward, "log_both": True, "samples": 2, "temperature": 1.0}
    own = Asker(asker.pool, asker.tokenizer, asker.config.model_copy(update=fields))
    log = RolloutLog(tmp_path, 0)
    log.write(own.ask(problems, None))
    log.close()
    rows = [json.loads(line) for line in read_lines(tmp_path / ROLLOUTS)]
    alone = Asker(
        asker.pool,
        asker.tokenizer,
        asker.config.model_copy(update=fields | {"reward": "likelihood", "log_both": False}),
    ).ask(problems, None)
    for row, scored in zip(rows, alone, strict=True):
        assert row["loglikelihood"] == pytest.approx(scored.loglikelihood, abs=1e-4)
        assert row["right"] in (0.0, 0.5, 1.0)
        assert row["tokens"] > 0
        assert len(row["others"]) == 1
        assert row["reward"] == (row["right"] if reward == "answer" else row["loglikelihood"])


def test_the_likelihood_may_cost_tokens_too(asker):
    config = asker.config.model_copy(update={"reward": "likelihood", "token_cost": 0.1})
    assert config.wants_answers
    assert reward_of(config, 0.0, -1.5, 4.0) == pytest.approx(-1.9)
    with pytest.raises(ValueError, match="needs what was not measured"):
        reward_of(config, None, -1.5, None)
    (rollout,) = Asker(asker.pool, asker.tokenizer, config).ask(
        load_problems("builtin:1", "train", 1), None
    )
    assert rollout.reward == pytest.approx(rollout.loglikelihood - 0.1 * rollout.tokens)


def test_prompt_and_answer_may_have_gates_of_their_own(asker):
    """As the engine has them: the answer's first token is of the prompt's last pass."""
    problems = load_problems("builtin:1", "train", 2)
    gates = torch.tensor([[[0.0] * 4, [1.0] * 4], [[0.5] * 4, [0.5] * 4]])
    first, second = asker.ask(problems, gates)
    assert (first.gates, first.answer_gates) == ((0.0,) * 4, (1.0,) * 4)
    assert (second.gates, second.answer_gates) == ((0.5,) * 4, None), "they do not differ"
    prompt = prompt_tokens(asker.tokenizer, problems[0])
    assert len(prompt) > 1
    same = asker.ask(problems[1:], torch.full((1, 4), 0.5))[0]
    assert same.completion == second.completion


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
