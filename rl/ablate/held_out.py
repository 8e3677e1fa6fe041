"""Every arm on the held-out problems: greedy answers under the gates that it chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evals.problems import style_of
from evals.store import SAMPLES, SampleStore
from evals.tasks import PROMPT_VERSION
from mhc_model.gates import gates_hash
from rl.ablate.arms import Arm
from rl.ablate.study import Study
from rl.config import RLConfig
from rl.rollouts import Asker, reward_of
from rl.setup import problems_hash

TASK = "held-out"


@dataclass(frozen=True)
class HeldOut:
    """What an arm did on the held-out problems, in their order.

    Attributes:
        arm: whose.
        solved: (n,) bool.
        gates: (n, 2L) float32 that the model ran with; those of the prompt where they differ.
        tokens: (n,) generated tokens.
        rewards: (n,) as the arms learned from.
        styles: of each answer, None where it has none (`evals.problems.styles`).
        answer_gates: (n, 2L) float32 of the answers, where they are not the prompts'.
        loglikelihood: (n,) mean per token of the problem's own answer, where it was asked.
    """

    arm: Arm
    solved: np.ndarray
    gates: np.ndarray
    tokens: np.ndarray
    rewards: np.ndarray
    styles: tuple[str | None, ...]
    answer_gates: np.ndarray | None = None
    loglikelihood: np.ndarray | None = None

    @property
    def accuracy(self) -> float:
        return float(self.solved.mean())

    @classmethod
    def read(cls, arm: Arm, rows: Sequence[Mapping[str, Any]], config: RLConfig) -> HeldOut:
        """From the rows of its samples.jsonl, one a problem."""
        # Rows of earlier versions have a reward, which was a right answer.
        solved = np.array([row.get("right", row["reward"]) for row in rows]) > 0.5
        likely = [row.get("loglikelihood") for row in rows]
        tokens = [row["tokens"] for row in rows]
        rewards = [
            reward_of(config, float(right), own, count)
            for right, own, count in zip(solved, likely, tokens, strict=True)
        ]
        answers = None
        if any("answer_gates" in row for row in rows):
            answers = np.array([row.get("answer_gates", row["gates"]) for row in rows], np.float32)
        return cls(
            arm,
            solved,
            np.array([row["gates"] for row in rows], dtype=np.float32),
            np.array(tokens, dtype=float),
            np.array(rewards, dtype=float),
            tuple(style_of(row["completion"]) for row in rows),
            answers,
            None if None in likely else np.array(likely, dtype=float),
        )


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
        "reward": study.config.extraction,  # its name when the first of these files were written
        "problems": problems_hash(study.held_out),
        **({"loglikelihood": True} if study.config.wants_likelihood else {}),
    }
    store = SampleStore(study.path(arm), identity)
    try:
        _fill(study, store, asker, gates, known.get(key))
        ordered = store.rows(TASK, [problem.id for problem in study.held_out])
    finally:
        store.close()
    known[key] = ordered
    return HeldOut.read(arm, ordered, study.config)


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
                "right": rollout.right,
                "gates": [round(gate, 6) for gate in rollout.gates],
                "completion": rollout.completion,
                "finish_reason": rollout.finish_reason,
                "tokens": rollout.tokens,
            }
            if rollout.answer_gates is not None:
                row["answer_gates"] = [round(gate, 6) for gate in rollout.answer_gates]
            if rollout.loglikelihood is not None:
                row["loglikelihood"] = rollout.loglikelihood
            store.add(TASK, row)
