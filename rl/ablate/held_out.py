"""Every arm on the held-out problems: greedy answers under the gates that it chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evals.store import SAMPLES, SampleStore
from evals.tasks import PROMPT_VERSION
from mhc_model.gates import gates_hash
from rl.ablate.arms import Arm
from rl.ablate.study import Study
from rl.rollouts import Asker
from rl.setup import problems_hash

TASK = "held-out"


@dataclass(frozen=True)
class HeldOut:
    """What an arm did on the held-out problems, in their order.

    Attributes:
        arm: whose.
        solved: (n,) bool.
        gates: (n, 2L) float32 that the model ran with.
    """

    arm: Arm
    solved: np.ndarray
    gates: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.solved.mean())


def is_tested(study: Study, arm: Arm) -> bool:
    """Whether all held-out answers of the arm are there; a line that was cut off is none."""
    path = study.path(arm) / SAMPLES
    return path.exists() and path.read_bytes().count(b"\n") == len(study.held_out)


def evaluate(study: Study, arm: Arm, asker: Asker | None, known: dict[str, list[Any]]) -> HeldOut:
    """Asks the arm's answers, or reads those of an earlier start.

    Args:
        study: whose problems.
        arm: has learned.
        asker: runs the model; None where the arm `is_tested`.
        known: hash of all gates -> rows of another arm that chose the same. Greedy answers under
            the same gates are the same, so these are taken; this arm's are added.
    """
    gates = study.gates(arm)
    learned = study.checkpoint.model.learned_gates().detach()
    rows = learned.expand(len(study.held_out), -1) if gates is None else gates
    key = gates_hash(rows)
    identity = {
        "arm": arm.label,
        "checkpoint": study.checkpoint.content_hash,
        "gates": key,
        "prompt_version": PROMPT_VERSION,
        "max_tokens": study.config.max_tokens,
        "reward": study.config.reward,
        "problems": problems_hash(study.held_out),
    }
    store = SampleStore(study.path(arm), identity)
    try:
        _fill(study, store, asker, gates, known.get(key))
        ordered = store.rows(TASK, [problem.id for problem in study.held_out])
    finally:
        store.close()
    known[key] = ordered
    return HeldOut(
        arm,
        np.array([sample["reward"] for sample in ordered]) > 0.5,
        np.array([sample["gates"] for sample in ordered], dtype=np.float32),
    )


def _fill(
    study: Study,
    store: SampleStore,
    asker: Asker | None,
    gates: Tensor | None,
    same: list[Mapping[str, Any]] | None,
) -> None:
    """Adds the rows that the store lacks, a round at a time: an interruption costs one."""
    done = store.done(TASK)
    missing = [i for i, problem in enumerate(study.held_out) if problem.id not in done]
    if same is not None:
        for index in missing:
            store.add(TASK, dict(same[index]))
        return
    if missing and asker is None:
        raise RuntimeError("an arm that is not tested yet needs an asker")
    size = study.config.envs
    for start in range(0, len(missing), size):
        indices = missing[start : start + size]
        rollouts = asker.ask(
            [study.held_out[index] for index in indices],
            None if gates is None else gates[torch.tensor(indices)],
        )
        for rollout in rollouts:
            row = {
                "id": rollout.problem,
                "reward": rollout.reward,
                "gates": [round(gate, 6) for gate in rollout.gates],
                "completion": rollout.completion,
                "finish_reason": rollout.finish_reason,
                "tokens": rollout.tokens,
            }
            store.add(TASK, row)
