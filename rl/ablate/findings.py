"""What an ablation found: accuracies over seeds, paired tests, a bound; as numbers and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from evals.compare import LEGEND, Test, accuracy_test, corrected, tests_rows
from evals.results import markdown, percent
from evals.statistics import accuracy_entry, paired_bootstrap
from rl.ablate.arms import KNOWN, LEARNED, PPO, RANDOM
from rl.ablate.held_out import HeldOut
from rl.ablate.study import ARM, Study


class Findings:
    """Held-out results of all arms."""

    def __init__(self, study: Study, results: Sequence[HeldOut]) -> None:
        """Takes the results of every arm of the study, in its order."""
        self.study = study
        self.results = list(results)
        self.names = list(dict.fromkeys(result.arm.name for result in results))
        self.tests = corrected(self._tests())

    def of(self, name: str) -> list[HeldOut]:
        """Results of an arm, one a seed."""
        return [result for result in self.results if result.arm.name == name]

    def bound(self) -> dict[str, Any]:
        """Share of the problems that the learned, a fixed or a random gate vector solves.

        No policy that picks among these for each problem can do better. It grows with the number
        of vectors also where answers are right by chance, so it is no promise.
        """
        tried = [
            result.solved
            for result in self.results
            if result.arm.seed is None or result.arm.method == RANDOM
            if result.arm.method != KNOWN
        ]
        solved = int(np.any(tried, axis=0).sum())
        return {**accuracy_entry(solved, len(tried[0])), "vectors": len(tried)}

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Every arm's `summary`: its bootstrap is drawn once for all tables."""
        return {name: self.summary(name) for name in self.names}

    def summary(self, name: str) -> dict[str, Any]:
        """An arm over its seeds; the difference is to the learned gates, paired by problem."""
        results = self.of(name)
        shares = [result.accuracy for result in results]
        baseline = self.of(LEARNED)[0].solved.astype(float)
        mean = np.mean([result.solved for result in results], axis=0)
        difference = paired_bootstrap(baseline.tolist(), mean.tolist())
        return {
            "accuracy": float(np.mean(shares)),
            "by_seed": shares,
            "difference": difference.value,
            "difference_95": list(difference.interval),
            **self._cost(results[0]),
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
            "arms": self.summaries,
            "runs": [
                {
                    "arm": result.arm.name,
                    "seed": result.arm.seed,
                    **accuracy_entry(int(result.solved.sum()), len(result.solved)),
                    "gate_mean": np.round(result.gates.mean(0), 4).tolist(),
                    "gate_std": np.round(result.gates.std(0), 4).tolist(),
                }
                for result in self.results
            ],
            "bound": self.bound(),
            "tests": [_test_entry(test) for test in self.tests],
        }

    def arms_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and a row an arm."""
        header = ["gates", "rollouts", "accuracy", "by seed", "minus learned [95 %]"]
        rows = []
        for name, entry in self.summaries.items():
            low, high = entry["difference_95"]
            rows.append(
                [
                    name,
                    _cost_words(entry),
                    self._accuracy_words(name, entry),
                    " ".join(f"{100 * share:.1f}" for share in entry["by_seed"]),
                    ""
                    if name == LEARNED
                    else f"{100 * entry['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                ]
            )
        bound = self.bound()
        words = f"best of {bound['vectors']} for each problem"
        return header, [*rows, [words, "", percent(bound), "", ""]]

    def arms_markdown(self) -> str:
        return markdown(*self.arms_table())

    def text(self) -> str:
        """Both tables."""
        return "\n\n".join([self.arms_markdown(), markdown(*tests_rows(self.tests)), LEGEND])

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

    def _tests(self) -> list[Test]:
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
                tests.append(_test(same[0], result))
        return tests


def _test(first: HeldOut, second: HeldOut) -> Test:
    names = (first.arm.label, second.arm.label)
    solved = (first.solved.tolist(), second.solved.tolist())
    return accuracy_test("held-out", "accuracy", names, solved)


def _test_entry(test: Test) -> dict[str, Any]:
    mcnemar = test.mcnemar
    return {
        "first": test.first,
        "second": test.second,
        "difference": test.difference.value,
        "difference_95": list(test.difference.interval),
        "won": None if mcnemar is None else mcnemar.only_second,
        "lost": None if mcnemar is None else mcnemar.only_first,
        "p": None if mcnemar is None else mcnemar.p_value,
        "p_holm": test.holm_p,
        "detectable": test.detectable,
    }


def _cost_words(entry: dict[str, Any]) -> str:
    if "sequences" in entry:
        return f"{entry['sequences']} by gradient"
    return str(entry["rollouts"])
