"""What an ablation found: accuracy, tokens and reward over seeds, paired tests, a bound."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from evals.paired import (
    LEGEND,
    REWARD,
    TOKENS,
    Test,
    accuracy_test,
    corrected,
    mean_test,
    tests_rows,
)
from evals.problems import STYLES
from evals.results import markdown, percent
from evals.statistics import accuracy_entry, paired_bootstrap
from rl.ablate.arms import KNOWN, LEARNED, PPO, RANDOM
from rl.ablate.held_out import TASK, HeldOut
from rl.ablate.study import ARM, Study

ACCURACY = "accuracy"


class Findings:
    """Held-out results of all arms.

    Attributes:
        study: what was compared.
        results: of every arm, in the study's order.
        names: of the arms.
        metric: what arms are compared by: the reward, or the accuracy where they are the same.
        tests: of `metric`, corrected for all of them together.
    """

    def __init__(self, study: Study, results: Sequence[HeldOut]) -> None:
        """Takes the results of every arm of the study, in its order."""
        self.study = study
        self.results = list(results)
        self.names = list(dict.fromkeys(result.arm.name for result in results))
        config = study.config
        plain = config.reward == "answer" and config.token_cost == 0.0
        self.metric = ACCURACY if plain else REWARD
        self.tests = corrected(self._tests(self.metric))

    def of(self, name: str) -> list[HeldOut]:
        """Results of an arm, one a seed."""
        return [result for result in self.results if result.arm.name == name]

    def bound(self) -> dict[str, Any]:
        """What the best of the learned, the fixed, the behaviours' and the random gates reaches.

        `accuracy` is the share of problems that one of them solves, `reward` the mean of the
        highest reward. No policy that picks among these for each problem can do better. Both grow
        with the number of vectors also where answers are right by chance, so they are no promise.
        """
        tried = [
            result
            for result in self.results
            if result.arm.seed is None or result.arm.method == RANDOM
            if result.arm.method != KNOWN
        ]
        solved = int(np.any([result.solved for result in tried], axis=0).sum())
        return {
            **accuracy_entry(solved, len(tried[0].solved)),
            "reward": float(np.max([result.rewards for result in tried], axis=0).mean()),
            "vectors": len(tried),
        }

    @cached_property
    def further_tests(self) -> list[Test]:
        """Of what is not `metric`: tokens, and accuracy; each corrected for its own tests."""
        others = [name for name in (ACCURACY, TOKENS) if name != self.metric]
        return [test for name in others for test in corrected(self._tests(name))]

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Every arm's `summary`: its bootstrap is drawn once for all tables."""
        return {name: self.summary(name) for name in self.names}

    def summary(self, name: str) -> dict[str, Any]:
        """An arm over its seeds; differences are to the learned gates, paired by problem."""
        results, learned = self.of(name), self.of(LEARNED)[0]
        entry: dict[str, Any] = {}
        for metric, prefix in ((ACCURACY, ""), (TOKENS, "tokens_"), (REWARD, "reward_")):
            own = [_values(result, metric) for result in results]
            mean = np.mean(own, axis=0)
            difference = paired_bootstrap(_values(learned, metric).tolist(), mean.tolist())
            entry |= {
                prefix.rstrip("_") or "accuracy": float(mean.mean()),
                f"{prefix}by_seed": [float(values.mean()) for values in own],
                f"{prefix}difference": difference.value,
                f"{prefix}difference_95": list(difference.interval),
            }
        likely = [r.loglikelihood for r in results if r.loglikelihood is not None]
        if likely:
            entry["loglikelihood"] = float(np.mean(likely))
        if len(self.levels) > 1:
            entry["levels"] = {
                str(level): self.part(name, places) for level, places in self.levels.items()
            }
        return entry | self._cost(results[0])

    @cached_property
    def levels(self) -> dict[int, np.ndarray]:
        """Level of difficulty -> which held-out problems have it, the easiest first."""
        levels = [problem.level for problem in self.study.held_out]
        known = sorted({level for level in levels if level is not None})
        return {level: np.array([own == level for own in levels]) for level in known}

    def part(self, name: str, places: np.ndarray) -> dict[str, Any]:
        """An arm over its seeds on some of the problems: means, and the share of each style."""
        results = self.of(name)
        styles = [
            style
            for result in results
            for style, inside in zip(result.styles, places, strict=True)
            if inside
        ]
        return {
            "n": int(places.sum()),
            "accuracy": float(np.mean([result.solved[places] for result in results])),
            "tokens": float(np.mean([result.tokens[places] for result in results])),
            "reward": float(np.mean([result.rewards[places] for result in results])),
            "styles": {style: styles.count(style) / len(styles) for style in STYLES},
        }

    def as_json(self) -> dict[str, Any]:
        """results.json."""
        config = self.study.config
        return {
            "checkpoint": {
                "path": str(self.study.checkpoint.path),
                "content_hash": self.study.checkpoint.content_hash,
            },
            "data": config.data,
            "n": len(self.study.held_out),
            "budget": config.budget,
            "reward": config.reward,
            "token_cost": config.token_cost,
            "metric": self.metric,
            "arms": self.summaries,
            "runs": [_run_entry(result) for result in self.results],
            "bound": self.bound(),
            "tests": [_test_entry(test) for test in self.tests],
            "further_tests": [_test_entry(test) for test in self.further_tests],
        }

    def arms_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and a row an arm; seeds and differences are of `metric`."""
        header = ["gates", "rollouts", "accuracy", TOKENS, REWARD]
        header += [f"{self.metric} by seed", f"{self.metric} minus learned [95 %]"]
        rows = []
        for name, entry in self.summaries.items():
            seeds, difference = self._compared(entry)
            rows.append(
                [
                    name,
                    _cost_words(entry),
                    self._accuracy_words(name, entry),
                    f"{entry['tokens']:.1f}",
                    f"{entry['reward']:.3f}",
                    seeds,
                    "" if name == LEARNED else difference,
                ]
            )
        bound = self.bound()
        words = f"best of {bound['vectors']} for each problem"
        return header, [*rows, [words, "", percent(bound), "", f"{bound['reward']:.3f}", "", ""]]

    def levels_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and a row for each arm and level; no rows where there is one level or none."""
        header = ["gates", "level", "problems", "accuracy", TOKENS, REWARD, "direct, brief, worked"]
        rows = [
            [
                name,
                level,
                str(part["n"]),
                f"{100 * part['accuracy']:.1f} %",
                f"{part['tokens']:.1f}",
                f"{part['reward']:.3f}",
                ", ".join(f"{100 * share:.0f}" for share in part["styles"].values()) + " %",
            ]
            for name, entry in self.summaries.items()
            for level, part in entry.get("levels", {}).items()
        ]
        return header, rows

    def arms_markdown(self) -> str:
        return markdown(*self.arms_table())

    def tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """Heading -> header and rows; those without rows are left out."""
        found = {
            "Arms": self.arms_table(),
            "By level": self.levels_table(),
            "Tests": tests_rows(self.tests),
            "Further tests": tests_rows(self.further_tests),
        }
        return {heading: table for heading, table in found.items() if table[1]}

    def text(self) -> str:
        """All tables."""
        return "\n\n".join([*(markdown(*table) for table in self.tables().values()), LEGEND])

    def _compared(self, entry: dict[str, Any]) -> tuple[str, str]:
        """By seed, and the difference to the learned gates, of `metric`."""
        if self.metric == ACCURACY:
            low, high = entry["difference_95"]
            seeds = " ".join(f"{100 * share:.1f}" for share in entry["by_seed"])
            words = f"{100 * entry['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            return seeds, words
        low, high = entry["reward_difference_95"]
        seeds = " ".join(f"{value:.3f}" for value in entry["reward_by_seed"])
        return seeds, f"{entry['reward_difference']:+.3f} [{low:+.3f}, {high:+.3f}]"

    def _accuracy_words(self, name: str, entry: dict[str, Any]) -> str:
        results = self.of(name)
        if len(results) > 1:
            return f"{100 * entry['accuracy']:.1f} %"
        return percent(accuracy_entry(int(results[0].solved.sum()), len(results[0].solved)))

    def _cost(self, result: HeldOut) -> dict[str, Any]:
        path = self.study.path(result.arm) / ARM
        if not path.exists():
            return {"rollouts": 0}
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {key: facts[key] for key in ("rollouts", "sequences") if key in facts}

    def _tests(self, metric: str) -> list[Test]:
        """Every run against the arms of `against`, of the same seed where those have seeds."""
        tests = []
        for other in self.study.config.against:
            references = self.of(other)
            for result in self.results:
                same = [r for r in references if r.arm.seed in (None, result.arm.seed)]
                if result.arm.name == other or not same:
                    continue
                # Fixed gates and random ones are shown; what is tested are choices.
                if result.arm.seed is None or result.arm.method == RANDOM:
                    continue
                if other != LEARNED and result.arm.method != PPO:
                    continue
                tests.append(_test(metric, same[0], result))
        return tests


def _values(result: HeldOut, metric: str) -> np.ndarray:
    """(n,) float64, one a problem."""
    if metric == ACCURACY:
        return result.solved.astype(float)
    return result.tokens if metric == TOKENS else result.rewards


def _test(metric: str, first: HeldOut, second: HeldOut) -> Test:
    names = (first.arm.label, second.arm.label)
    if metric == ACCURACY:
        return accuracy_test(TASK, metric, names, (first.solved.tolist(), second.solved.tolist()))
    values = (_values(first, metric).tolist(), _values(second, metric).tolist())
    return mean_test(TASK, metric, names, values)


def _run_entry(result: HeldOut) -> dict[str, Any]:
    entry = {
        "arm": result.arm.name,
        "seed": result.arm.seed,
        **accuracy_entry(int(result.solved.sum()), len(result.solved)),
        "tokens": float(result.tokens.mean()),
        "reward": float(result.rewards.mean()),
        "gate_mean": np.round(result.gates.mean(0), 4).tolist(),
        "gate_std": np.round(result.gates.std(0), 4).tolist(),
    }
    if result.answer_gates is not None:
        entry["answer_gate_mean"] = np.round(result.answer_gates.mean(0), 4).tolist()
        entry["answer_gate_std"] = np.round(result.answer_gates.std(0), 4).tolist()
    if result.loglikelihood is not None:
        entry["loglikelihood"] = float(result.loglikelihood.mean())
    return entry


def _test_entry(test: Test) -> dict[str, Any]:
    mcnemar = test.mcnemar
    return {
        "metric": test.metric,
        "first": test.first,
        "second": test.second,
        "difference": test.difference.value,
        "difference_95": list(test.difference.interval),
        "won": None if mcnemar is None else mcnemar.only_second,
        "lost": None if mcnemar is None else mcnemar.only_first,
        "p": test.p_value,
        "p_holm": test.holm_p,
        "detectable": test.detectable,
    }


def _cost_words(entry: dict[str, Any]) -> str:
    if "sequences" in entry:
        return f"{entry['sequences']} by gradient"
    return str(entry["rollouts"])
