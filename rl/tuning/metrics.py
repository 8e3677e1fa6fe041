"""What a run says about an iteration: a row of metrics.jsonl, TensorBoard, one line to read."""

from __future__ import annotations

import math
import time
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
    """One row of metrics.jsonl; gate means and spreads are per sublayer."""
    columns = list(zip(*(rollout.gates for rollout in rollouts), strict=True))
    means = [sum(column) / len(column) for column in columns]
    spreads = [
        math.sqrt(sum((value - mean) ** 2 for value in column) / len(column))
        for column, mean in zip(columns, means, strict=True)
    ]
    seconds, utilisation = lap.seconds, lap.usage.utilisation
    shares = lap.usage.by_slot.items()
    return {
        "iteration": iteration,
        "rollouts": len(rollouts),
        "policy_version": rollouts[0].policy_version,
        "reward": sum(rollout.reward for rollout in rollouts) / len(rollouts),
        **learner,
        "gate_mean": [round(mean, 5) for mean in means],
        "gate_std": [round(spread, 5) for spread in spreads],
        "seconds": round(seconds, 3),
        "rollouts_per_second": round(len(rollouts) / seconds, 2),
        "tokens_per_second": round(sum(r.tokens for r in rollouts) / seconds, 1),
        "pool_utilisation": round(utilisation, 4),
        "pool_idle": round(1.0 - utilisation, 4),
        "replica_utilisation": {f"replica-{slot}": round(share, 4) for slot, share in shares},
        "replicas": len(lap.usage.up_s),
    }


def iteration_line(config: RLConfig, row: dict[str, Any]) -> str:
    mean = row["gate_mean"]
    return (
        f"iteration {row['iteration']}/{config.iterations} | reward {row['reward']:.3f} | entropy "
        f"{row['entropy']:.2f} | kl {row.get('kl', float('nan')):.4f} | explained variance "
        f"{row['explained_variance']:.2f} | gates {min(mean):.2f} to {max(mean):.2f} | "
        f"{row['rollouts_per_second']:.1f} rollouts/s | idle: learner "
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
