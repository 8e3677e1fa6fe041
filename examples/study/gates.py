"""What RL over gates brought on each seed's model, with behaviours in training and without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals.statistics import Interval
from examples.study.config import GATES_WITH, GATES_WITHOUT, StudyConfig
from examples.study.findings import p_words
from examples.study.results import read_ablation
from examples.study.seeds import SeedDifference, crossed_bootstrap, seed_difference

MODELS = {GATES_WITHOUT: "without behaviours", GATES_WITH: "with behaviours"}
REWARD = "reward"
BEHAVIOUR = "behaviour:"  # before the name, of the arm that has its gates


@dataclass(frozen=True)
class PolicyGain:
    """PPO's reward minus that of another way to choose gates.

    Attributes:
        model: with behaviours in training, or without.
        arm, other: names of the arms.
        difference: over seeds.
        seeds: these.
        pooled: interval over seeds and problems.
        own_p: p-value of each seed's own paired test on its problems, Holm-corrected in its
            ablation.
    """

    model: str
    arm: str
    other: str
    difference: SeedDifference
    seeds: tuple[int, ...]
    pooled: Interval | None
    own_p: tuple[float | None, ...]

    def as_json(self) -> dict[str, Any]:
        own = self.difference
        return {
            "model": self.model,
            "arm": self.arm,
            "minus": self.other,
            "mean": own.value,
            "student_95": None if own.interval is None else list(own.interval),
            "t_p": own.t_p,
            "sign_p": own.sign_p,
            "permutation_p": own.permutation_p,
            "seeds_and_problems_95": None if self.pooled is None else list(self.pooled),
            "by_seed": dict(zip(map(str, self.seeds), own.by_seed, strict=True)),
            "own_p_holm": dict(zip(map(str, self.seeds), self.own_p, strict=True)),
        }

    def words(self) -> str:
        """What is shown, in a sentence."""
        own, pair = self.difference, f"{MODELS[self.model]}, {self.arm} minus {self.other}, reward"
        if own.interval is None:
            return f"{pair}: {own.value:+.4f} on one seed; that seed's own test is in the table."
        low, high = own.interval
        clear = sum(p is not None and p < 0.01 for p in self.own_p)
        seeds = f"{clear} of {len(self.seeds)} seeds have p < 0.01 on their own problems"
        said = f"{pair}: {own.value:+.4f} [{low:+.4f}, {high:+.4f}]"
        if not own.is_shown:
            return f"{said}. **Not shown**: the interval includes 0; {seeds}."
        return f"{said}. PPO is **{'better' if own.value > 0 else 'worse'}**; {seeds}."


Ablations = dict[str, dict[int, dict[str, Any]]]


def read_gates(config: StudyConfig, directory: Path) -> Ablations:
    """Model (with behaviours, without) -> seed -> results of its ablation, of what is there."""
    found: Ablations = {}
    for name in MODELS:
        for seed in config.seeds:
            ablation = read_ablation(directory, seed, name)
            if ablation is not None:
                found.setdefault(name, {})[seed] = ablation
    return found


def policy_gains(ablations: Ablations) -> list[PolicyGain]:
    """PPO minus every arm that it was tested against, and minus behaviours, over seeds."""
    found = []
    for model, by_seed in ablations.items():
        first = next(iter(by_seed.values()))
        arms = [name for name in first["arms"] if name.partition(":")[0] == "ppo"]
        for arm in arms:
            others = dict.fromkeys(_arm(test["first"]) for test in first["tests"])
            others |= dict.fromkeys(name for name in first["arms"] if name.startswith(BEHAVIOUR))
            for other in others:
                if other != arm:
                    found.append(_gain(model, arm, other, by_seed))
    return found


def _gain(model: str, arm: str, other: str, by_seed: dict[int, dict[str, Any]]) -> PolicyGain:
    seeds = tuple(s for s, one in by_seed.items() if {arm, other} <= set(one["rewards"]))
    gained = [by_seed[s]["rewards"][arm] - by_seed[s]["rewards"][other] for s in seeds]
    own_p = []
    for seed in seeds:
        tests = [*by_seed[seed]["tests"], *by_seed[seed]["further_tests"]]
        same = [
            test["p_holm"]
            for test in tests
            if (_arm(test["first"]), _arm(test["second"])) == (other, arm)
            and test["metric"] == by_seed[seed]["metric"]
        ]
        own_p.append(same[0] if same else None)
    return PolicyGain(
        model,
        arm,
        other,
        seed_difference([float(values.mean()) for values in gained]),
        seeds,
        crossed_bootstrap(np.stack(gained)) if len(seeds) > 1 else None,
        tuple(own_p),
    )


def _arm(label: str) -> str:
    """Name of the arm without its seed."""
    return label.partition(" seed ")[0]


def arms_table(by_seed: dict[int, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and a row an arm: means over seeds, and the reward of each seed."""
    header = ["gates", "accuracy", "tokens per answer", REWARD, f"{REWARD} by seed"]
    names = [name for name in next(iter(by_seed.values()))["arms"]]
    rows = []
    for name in names:
        entries = [one["arms"][name] for one in by_seed.values() if name in one["arms"]]
        rows.append(
            [
                name,
                f"{100 * np.mean([entry['accuracy'] for entry in entries]):.1f} %",
                f"{np.mean([entry['tokens'] for entry in entries]):.1f}",
                f"{np.mean([entry['reward'] for entry in entries]):.4f}",
                " ".join(f"{entry['reward']:.3f}" for entry in entries),
            ]
        )
    bound = [one["bound"] for one in by_seed.values()]
    rows.append(
        [
            "best for each problem",
            f"{100 * np.mean([entry['accuracy'] for entry in bound]):.1f} %",
            "",
            f"{np.mean([entry['reward'] for entry in bound]):.4f}",
            " ".join(f"{entry['reward']:.3f}" for entry in bound),
        ]
    )
    return header, rows


def gains_table(gains: list[PolicyGain]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each comparison of PPO."""
    header = ["PPO minus", "difference [Student 95 %]", "by seed", "p: Student, sign, signs"]
    header += ["[seeds and problems 95 %]", "p of each seed's own test, Holm"]
    rows = []
    for gain in gains:
        own = gain.difference
        bounds = (
            "" if own.interval is None else f" [{own.interval[0]:+.4f}, {own.interval[1]:+.4f}]"
        )
        student = "" if own.t_p is None else p_words(own.t_p)
        rows.append(
            [
                gain.other,
                f"{own.value:+.4f}{bounds}",
                " ".join(f"{value:+.3f}" for value in own.by_seed),
                f"{student}, {p_words(own.sign_p)}, {p_words(own.permutation_p)}",
                "" if gain.pooled is None else f"[{gain.pooled[0]:+.4f}, {gain.pooled[1]:+.4f}]",
                " ".join("none" if p is None else p_words(p) for p in gain.own_p),
            ]
        )
    return header, rows


def level_words(by_seed: dict[int, dict[str, Any]]) -> str | None:
    """Tokens that PPO spends on each level of difficulty, by seed; None with one level."""
    parts = []
    for seed, one in by_seed.items():
        for name, entry in one["arms"].items():
            if name.partition(":")[0] == "ppo" and entry.get("levels"):
                spent = [
                    f"{part['tokens']:.1f} on level {level}"
                    for level, part in entry["levels"].items()
                ]
                parts.append(f"seed {seed}: {', '.join(spent)}")
    return f"Tokens per answer of PPO: {'; '.join(parts)}." if parts else None
