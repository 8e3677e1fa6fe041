"""Which problems are worth training on: those that some gates solve and others do not.

Every problem is answered under the learned gates and under random ones. The share of right answers
is its solve rate; problems outside of the window are left out. With few probes the rate is coarse:
of 4 probes it is 0, 1/4, ... 1, so `difficulty: [0.01, 0.99]` takes what is neither 0 nor 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from evals.problems import Problem
from mhc_model.config import PolicyConfig
from mhc_model.errors import ConfigError
from mhc_model.files import replace_text
from rl.config import RLConfig
from rl.rollouts import Asker
from rl.setup import problems_hash

PROBES = "difficulty.json"
# What the rates depend on; a run of another name, or another seed, measures its own.
KEYS = ("data", "problems", "difficulty_probes", "samples", "temperature", "max_tokens")


def solve_rates(
    asker: Asker, problems: Sequence[Problem], n_layers: int, probes: int, seed: int
) -> list[float]:
    """(problems,) shares of right answers, of one with the learned gates and `probes` - 1 with
    random gates, which are the same for all problems."""
    random = np.random.default_rng([seed, probes]).random((probes - 1, 2 * n_layers))
    rows = [None, *torch.tensor(random, dtype=torch.float32)]
    totals = np.zeros(len(problems))
    for row in rows:
        gates = None if row is None else row.expand(len(problems), -1)
        totals += [rollout.right for rollout in asker.ask(problems, gates)]
    return [float(total) / probes for total in totals]


def choose_problems(
    directory: Path,
    config: RLConfig,
    policy: PolicyConfig,
    asker: Asker,
    problems: Sequence[Problem],
) -> list[int]:
    """Indices of the problems to train on; rates are measured once a run and kept there.

    Raises:
        ConfigError: if no problem lies in the window; says where they lie.
    """
    if config.difficulty is None:
        return list(range(len(problems)))
    low, high = config.difficulty
    facts = {key: getattr(config, key) for key in KEYS} | {
        "reward": config.extraction,  # its name when the first of these files were written
        "checkpoint": policy.checkpoint_hash,
        "problems_sha256": problems_hash(problems),
    }
    path = directory / PROBES
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # Files of earlier versions do not say which problems.
    if "facts" in saved and facts | saved["facts"] == facts:
        rates = saved["solve_rates"]
    else:
        rates = solve_rates(asker, problems, policy.n_layers, config.difficulty_probes, config.seed)
        replace_text(path, json.dumps({"facts": facts, "solve_rates": rates}) + "\n")
    chosen = [index for index, rate in enumerate(rates) if low <= rate <= high]
    if not chosen:
        counts = {f"{rate:g}": rates.count(rate) for rate in sorted(set(rates))}
        raise ConfigError(
            f"no problem of {config.data} has a solve rate from {low:g} to {high:g}; problems per "
            f"rate: {counts}; widen difficulty, or give other problems"
        )
    print(
        f"{len(chosen)} of {len(problems)} problems have a solve rate from {low:g} to {high:g} "
        f"over {config.difficulty_probes} gate settings",
        flush=True,
    )
    return chosen
