"""What a run says about an iteration: a row of metrics.jsonl, TensorBoard, one line to read."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter

from mhc_model.gates import gate_names
from rl.config import RLConfig
from rl.pool import ReplicaPool, Usage
from rl.rollouts import Rollout


class Lap(NamedTuple):
    """Seconds of an iteration, and what the replicas did in them."""

    seconds: float
    usage: Usage


class Clock:
    """Laps of a run: the time from one to the next, learning and saving included."""

    def __init__(self, pool: ReplicaPool) -> None:
        self._pool = pool
        self._at = time.perf_counter()
        self._usage = pool.usage()

    def lap(self) -> Lap:
        """What has passed since the last lap."""
        at, usage = time.perf_counter(), self._pool.usage()
        lap = Lap(at - self._at, usage.since(self._usage))
        self._at, self._usage = at, usage
        return lap


def metrics_row(
    iteration: int, rollouts: list[Rollout], learner: dict[str, float], lap: Lap
) -> dict[str, Any]:
    """One row of metrics.jsonl; gate means and spreads are per sublayer, those of answers where
    they have gates of their own."""
    answers = [rollout.answer_gates or rollout.gates for rollout in rollouts]
    seconds, utilisation = lap.seconds, lap.usage.utilisation
    shares = lap.usage.by_slot.items()
    return {
        "iteration": iteration,
        "rollouts": len(rollouts),
        "policy_version": rollouts[0].policy_version,
        "reward": sum(rollout.reward for rollout in rollouts) / len(rollouts),
        **_means(rollouts),
        **learner,
        **_spreads("gate", [rollout.gates for rollout in rollouts]),
        **(_spreads("answer_gate", answers) if any(r.answer_gates for r in rollouts) else {}),
        "seconds": round(seconds, 3),
        "rollouts_per_second": round(len(rollouts) / seconds, 2),
        "tokens_per_second": round(sum(r.tokens or 0 for r in rollouts) / seconds, 1),
        "pool_utilisation": round(utilisation, 4),
        "pool_idle": round(1.0 - utilisation, 4),
        "replica_utilisation": {f"replica-{slot}": round(share, 4) for slot, share in shares},
        "replicas": len(lap.usage.up_s),
    }


def _means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means of what was measured: share of right answers, tokens of one, log-likelihood."""
    measured = {
        "accuracy": [r.right for r in rollouts if r.right is not None],
        "tokens": [r.tokens_per_answer for r in rollouts if r.tokens_per_answer is not None],
        "loglikelihood": [r.loglikelihood for r in rollouts if r.loglikelihood is not None],
    }
    return {name: sum(own) / len(own) for name, own in measured.items() if own}


def _spreads(name: str, gates: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    columns = list(zip(*gates, strict=True))
    means = [sum(column) / len(column) for column in columns]
    spreads = [
        math.sqrt(sum((value - mean) ** 2 for value in column) / len(column))
        for column, mean in zip(columns, means, strict=True)
    ]
    return {
        f"{name}_mean": [round(mean, 5) for mean in means],
        f"{name}_std": [round(spread, 5) for spread in spreads],
    }


def iteration_line(config: RLConfig, row: dict[str, Any]) -> str:
    mean = row["gate_mean"]
    words = {"accuracy": ".3f", "tokens": ".1f", "loglikelihood": ".3f"}
    measured = "".join(
        f"{name} {row[name]:{form}} | " for name, form in words.items() if name in row
    )
    return (
        f"iteration {row['iteration']}/{config.iterations} | reward {row['reward']:.3f} | "
        f"{measured}entropy {row['entropy']:.2f} | kl {row.get('kl', float('nan')):.4f} | "
        f"explained variance {row['explained_variance']:.2f} | gates {min(mean):.2f} to "
        f"{max(mean):.2f} | {row['rollouts_per_second']:.1f} rollouts/s | idle: learner "
        f"{100 * row['learner_idle']:.0f} %, pool {100 * row['pool_idle']:.0f} % | retried "
        f"{row['retried']} | lost {row['lost']} | dropped runners {row['dropped_runners']}"
    )


def write_board(board: SummaryWriter, row: dict[str, Any], iteration: int) -> None:
    for name, value in row.items():
        if isinstance(value, list):
            for gate, entry in zip(gate_names(len(value) // 2), value, strict=True):
                board.add_scalar(f"{name}/{gate}", entry, iteration)
        elif isinstance(value, dict):
            for key, entry in value.items():
                board.add_scalar(f"{name}/{key}", entry, iteration)
        elif name != "iteration":
            board.add_scalar(f"rl/{name}", value, iteration)
