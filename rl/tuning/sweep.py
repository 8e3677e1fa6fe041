"""How much room there is: fixed gates side by side, and the best of them for each problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from evals.problems import Problem
from evals.results import markdown
from evals.statistics import wilson_interval
from mhc_model.config import ModelConfig
from mhc_model.gates import expand_gate_rows
from rl.rollouts import Asker

POLICY = "policy"  # label of the policy's own outcomes
BEST = "best gate for each problem"
HEADERS = {"tokens": "tokens per answer", "loglikelihood": "log-likelihood", "reward": "reward"}


class Outcomes(NamedTuple):
    """What came of the problems under some gates, in their order.

    Attributes:
        rewards: as the run has them.
        right: share of right answers.
        tokens: generated tokens of an answer.
        loglikelihood: of the problems' own answers, where the run measures it.
    """

    rewards: list[float]
    right: list[float]
    tokens: list[float] | None = None
    loglikelihood: list[float] | None = None

    @classmethod
    def read(cls, saved: Any) -> Outcomes:
        """From JSON. Files of earlier versions have the rewards only, which were right answers."""
        return cls(saved, saved) if isinstance(saved, list) else cls(**saved)


def sweep_gates(
    asker: Asker, problems: Sequence[Problem], model: ModelConfig, gates: Sequence[float | str]
) -> dict[str, Outcomes]:
    """Every problem under the learned gates and under each of the fixed ones.

    Args:
        asker: runs the model.
        problems: to answer.
        model: whose gates they are.
        gates: numbers, one gate for all sublayers, or names of behaviours.

    Returns:
        Label ("learned", "g=0", "direct", ...) -> outcomes.
    """
    rows: dict[str, Tensor | None] = {"learned": None}
    for gate in gates:
        label = gate if isinstance(gate, str) else f"g={gate:g}"
        rows[label] = expand_gate_rows(gate, len(problems), model)
    return {label: outcomes_of(asker, problems, row) for label, row in rows.items()}


def outcomes_of(asker: Asker, problems: Sequence[Problem], gates: Tensor | None) -> Outcomes:
    """Outcomes under gates as `Asker.ask` takes them; answers are asked whatever is rewarded."""
    rollouts = asker.answering().ask(problems, gates)
    likely = [r.loglikelihood for r in rollouts if r.loglikelihood is not None]
    return Outcomes(
        [rollout.reward for rollout in rollouts],
        [rollout.right for rollout in rollouts if rollout.right is not None],
        [r.tokens_per_answer for r in rollouts if r.tokens_per_answer is not None],
        likely or None,
    )


def summarize(outcomes: Mapping[str, Outcomes]) -> dict[str, Any]:
    """Accuracy with its Wilson interval, and means, for each label; the bound of choosing a gate.

    The bound is what the best of the given gates for each problem reaches: no policy that picks
    among them can do better. The policy itself is none of them.
    """
    summary: dict[str, Any] = {}
    for label, own in outcomes.items():
        total = sum(own.right)  # of several answers to a problem a share is right
        summary[label] = {
            "accuracy": total / len(own.right),
            "wilson_95": list(wilson_interval(round(total), len(own.right))),
            "n": len(own.right),
            "reward": _mean(own.rewards),
        }
        for name, values in (("tokens", own.tokens), ("loglikelihood", own.loglikelihood)):
            if values is not None:
                summary[label][name] = _mean(values)
    given = [own for label, own in outcomes.items() if label != POLICY]
    summary[BEST] = {
        "accuracy": _mean([max(values) for values in zip(*(g.right for g in given), strict=True)]),
        "n": len(given[0].right),
        "reward": _mean([max(values) for values in zip(*(g.rewards for g in given), strict=True)]),
    }
    return summary


def summary_table(summary: Mapping[str, Any]) -> str:
    """One line a label."""
    means = {"tokens": ".1f", "loglikelihood": ".3f", "reward": ".3f"}
    means = {name: form for name, form in means.items() if any(name in e for e in summary.values())}
    rows = []
    for label, entry in summary.items():
        interval = ""
        if "wilson_95" in entry:
            low, high = entry["wilson_95"]
            interval = f" [{100 * low:.1f}, {100 * high:.1f}]"
        figures = [f"{entry[name]:{form}}" if name in entry else "" for name, form in means.items()]
        accuracy = f"{100 * entry['accuracy']:.1f} %{interval}"
        rows.append([label, accuracy, *figures, str(entry["n"])])
    header = ["gates", "accuracy [Wilson 95 %]", *(HEADERS[name] for name in means), "n"]
    return markdown(header, rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
