"""Problems that some gates solve and others do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from local_pools import CountingPool

from evals.problems import load_problems
from mhc_model import ConfigError
from mhc_model.config import PolicyConfig
from rl.rollouts import Asker
from rl.tuning.difficulty import choose_problems


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
