"""How much room there is: accuracy under fixed gates, and of the best gate for each problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evals.problems import Problem
from evals.statistics import wilson_interval
from mhc_model.gates import expand_gates
from rl.rollouts import Asker

POLICY = "policy"  # label of the policy's own outcomes


def sweep_gates(
    asker: Asker, problems: Sequence[Problem], n_layers: int, gates: Sequence[float]
) -> dict[str, list[float]]:
    """Rewards of every problem under the learned gates and under each fixed global gate.

    Returns:
        Label ("learned", "g=0", ...) -> rewards in the order of the problems.
    """
    rows: dict[str, Tensor | None] = {"learned": None}
    rows |= {f"g={gate:g}": expand_gates(gate, n_layers) for gate in gates}
    return {label: rewards(asker, problems, row) for label, row in rows.items()}


def rewards(asker: Asker, problems: Sequence[Problem], gates: Tensor | None) -> list[float]:
    """Rewards under given gates: (2L,) for all problems, (n, 2L) one row each, None the learned."""
    if gates is not None:
        gates = torch.as_tensor(gates).expand(len(problems), -1)
    return [rollout.reward for rollout in asker.ask(problems, gates)]


def summarize(outcomes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Accuracy with its Wilson interval for each label, and the bound of choosing per problem.

    The bound is the share of problems that at least one of the given gates solves: no policy that
    picks among them can do better. The policy itself is none of them.
    """
    summary: dict[str, Any] = {}
    for label, values in outcomes.items():
        total = sum(values)  # of several answers to a problem a share is right
        summary[label] = {
            "accuracy": total / len(values),
            "wilson_95": list(wilson_interval(round(total), len(values))),
            "n": len(values),
        }
    given = [values for label, values in outcomes.items() if label != POLICY]
    best = [max(values) for values in zip(*given, strict=True)]
    summary["best gate for each problem"] = {"accuracy": sum(best) / len(best), "n": len(best)}
    return summary


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """One line a label."""
    lines = []
    for label, entry in summary.items():
        line = f"  {label:<26} {100 * entry['accuracy']:5.1f} %"
        if "wilson_95" in entry:
            low, high = entry["wilson_95"]
            line += f"  [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(f"{line}  of {entry['n']}")
    return lines
