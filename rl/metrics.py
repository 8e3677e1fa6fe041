"""What a run says about an iteration: a row of metrics.jsonl, TensorBoard, one line to read."""

from __future__ import annotations

import math
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mhc_model.gates import gate_names
from rl.config import RLConfig
from rl.rollouts import Rollout


def metrics_row(
    iteration: int, rollouts: list[Rollout], learner: dict[str, float], seconds: float
) -> dict[str, Any]:
    """One row of metrics.jsonl; gate means and spreads are per sublayer."""
    columns = list(zip(*(rollout.gates for rollout in rollouts), strict=True))
    means = [sum(column) / len(column) for column in columns]
    spreads = [
        math.sqrt(sum((value - mean) ** 2 for value in column) / len(column))
        for column, mean in zip(columns, means, strict=True)
    ]
    return {
        "iteration": iteration,
        "rollouts": len(rollouts),
        "reward": sum(rollout.reward for rollout in rollouts) / len(rollouts),
        **learner,
        "gate_mean": [round(mean, 5) for mean in means],
        "gate_std": [round(spread, 5) for spread in spreads],
        "seconds": round(seconds, 3),
        "rollouts_per_second": round(len(rollouts) / seconds, 2),
        "tokens_per_second": round(sum(r.tokens for r in rollouts) / seconds, 1),
    }


def iteration_line(config: RLConfig, row: dict[str, Any]) -> str:
    mean = row["gate_mean"]
    return (
        f"iteration {row['iteration']}/{config.iterations} | reward {row['reward']:.3f} | entropy "
        f"{row['entropy']:.2f} | kl {row.get('kl', float('nan')):.4f} | explained variance "
        f"{row['explained_variance']:.2f} | gates {min(mean):.2f} to {max(mean):.2f} | "
        f"{row['rollouts_per_second']:.1f} rollouts/s | retried {row['retried']} | "
        f"lost {row['lost']}"
    )


def write_board(board: SummaryWriter, row: dict[str, Any], iteration: int) -> None:
    for name, value in row.items():
        if isinstance(value, list):
            for gate, entry in zip(gate_names(len(value) // 2), value, strict=True):
                board.add_scalar(f"{name}/{gate}", entry, iteration)
        elif name != "iteration":
            board.add_scalar(f"rl/{name}", value, iteration)
