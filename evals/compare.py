"""`python -m evals.compare A B C`: results side by side, and every two of them tested in pairs.

Runs are comparable only on the same problems with the same prompts and limits: anything else is
refused, saying what differs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from tyro.conf import Positional

from evals.paired import (
    LEGEND,
    REWARD,
    TOKENS,
    Test,
    accuracy_test,
    corrected,
    digits,
    mean_test,
    reward,
    tests_rows,
)
from evals.results import accuracies, interval, markdown, percent, read_results, read_samples
from evals.settings import BPB, N_SHOT
from evals.statistics import mean_entry, paired_bootstrap
from mhc_model.errors import ConfigError
from mhc_model.running import supervise
from mhc_model.settings import Settings, parse_command_line, reports_errors

__all__ = [
    "LEGEND",
    "CompareSettings",
    "Comparison",
    "Test",
    "accuracy_test",
    "compare",
    "corrected",
    "mean_test",
    "tests_rows",
]

# What must agree between runs, and how a disagreement is put.
_COMPARABLE = {
    "n": "number of problems",
    "n_shot": "number of shots",
    "prompt_version": "prompt version",
    "extraction_version": "extraction version",
    "score_version": "score version",
    "max_tokens": "limit of answer tokens",
    "prompts_sha256": "problems or prompts (sha256)",
}
_COMPARABLE_TEXT = {"bytes": "size of the text", "texts_sha256": "text (sha256)"}


class CompareSettings(Settings):
    """Configuration of `python -m evals.compare`."""

    results: Positional[tuple[str, ...]] = Field(
        min_length=1, description="results.json files or their directories"
    )
    labels: tuple[str, ...] = Field((), description="names of the columns; none names the files")
    tasks: tuple[str, ...] = Field((), description="compare these only; none compares all")
    token_cost: float | None = Field(
        None,
        ge=0.0,
        description="C in the reward of an answer, right (strict) - C * generated tokens; none "
        "shows no reward",
    )
    resamples: int = Field(10_000, ge=100, description="draws of each bootstrap interval")
    seed: int = Field(0, ge=0, description="of the draws")


@dataclass(frozen=True)
class Comparison:
    """Several runs on the same problems.

    Attributes:
        labels: names of the runs.
        runs: their results.json.
        rows: the table of values, a list of cells each, the metric first.
        tests: of every pair on every metric.
        unpaired: what could not be paired, and why.
    """

    labels: list[str]
    runs: list[dict[str, Any]]
    rows: list[list[str]]
    tests: list[Test]
    unpaired: list[str]

    def values_table(self) -> str:
        return markdown(["", *self.labels], self.rows)

    def tests_table(self) -> str:
        return markdown(*tests_rows(self.tests))

    def text(self) -> str:
        parts = [self.values_table()]
        if self.tests:
            parts += [self.tests_table(), LEGEND]
        return "\n\n".join([*parts, *self.unpaired])


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    settings = parse_command_line(
        CompareSettings, "evals.compare", "Compares results of python -m evals.", argv
    )
    found = compare(
        settings.results,
        settings.labels,
        settings.resamples,
        settings.seed,
        settings.token_cost,
        settings.tasks,
    )
    print(found.text())
    return 0


def compare(
    results: Sequence[str | Path],
    labels: Sequence[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
    token_cost: float | None = None,
    tasks: Sequence[str] = (),
) -> Comparison:
    """Compares results of `python -m evals`.

    Args:
        results: results.json files or their directories.
        labels: one a run; empty takes the names of the directories.
        resamples: draws of each bootstrap interval.
        seed: of the draws.
        token_cost: C >= 0 in the reward of an answer, right (strict) - C * generated tokens; None
            leaves the reward out.
        tasks: those to compare, which every run must have; empty takes all.

    Raises:
        DataError: if a file cannot be read.
        ConfigError: if the runs are not comparable, saying what differs, or the labels do not fit.
    """
    paths = [Path(result) for result in results]
    names = list(labels) or [(p if p.is_dir() else p.parent).name for p in paths]
    if len(names) != len(paths):
        raise ConfigError(f"{len(names)} labels for {len(paths)} results; give one a column")
    runs = [read_results(path) for path in paths]
    rows: list[list[str]] = []
    tests: list[Test] = []
    unpaired: list[str] = []
    for task in _common_tasks(runs, names, tasks):
        entries = [run["tasks"][task] for run in runs]
        _check_comparable(task, entries, names)
        samples = [_by_id(read_samples(path, task)) for path in paths]
        if task == BPB:
            rows.append(["bits per byte", *(f"{entry['bits_per_byte']:.4f}" for entry in entries)])
            tests += _text_tests(samples, names, resamples, seed, unpaired)
            continue
        for metric in accuracies(entries[0]):
            rows.append([f"{task} {metric}", *(percent(entry[metric]) for entry in entries)])
            tests += _accuracy_tests(task, metric, samples, names, resamples, seed)
        if any("words" in entry for entry in entries):
            rows.append([f"{task} words", *(entry.get("words", "") for entry in entries)])
        if task not in N_SHOT:
            continue
        for metric, values in _means(samples, token_cost).items():
            means = [mean_entry(list(run.values()), resamples, seed) for run in values]
            rows.append([f"{task} {metric}", *(interval(mean, digits(metric)) for mean in means)])
            tests += _mean_tests(task, metric, values, names, resamples, seed)
    return Comparison(names, runs, rows, corrected(tests), unpaired)


def _by_id(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {sample["id"]: sample for sample in samples}


def _accuracy_tests(
    task: str,
    metric: str,
    samples: Sequence[dict[str, dict[str, Any]]],
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> list[Test]:
    ids = list(samples[0])
    if len(ids) < 2:
        return []
    solved = [[bool(run[identity][metric]) for identity in ids] for run in samples]
    return [
        accuracy_test(
            task, metric, (names[one], names[two]), (solved[one], solved[two]), resamples, seed
        )
        for one, two in itertools.combinations(range(len(names)), 2)
    ]


def _means(
    samples: Sequence[dict[str, dict[str, Any]]], token_cost: float | None
) -> dict[str, list[dict[str, float]]]:
    """By metric and run: a number for every problem."""
    found = {TOKENS: [{i: float(row["tokens"]) for i, row in run.items()} for run in samples]}
    if token_cost is not None:
        found[REWARD] = [
            {i: reward(row["strict"], row["tokens"], token_cost) for i, row in run.items()}
            for run in samples
        ]
    return found


def _mean_tests(
    task: str,
    metric: str,
    values: Sequence[dict[str, float]],
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> list[Test]:
    ids = list(values[0])
    if len(ids) < 2:
        return []
    ordered = [[run[identity] for identity in ids] for run in values]
    return [
        mean_test(
            task, metric, (names[one], names[two]), (ordered[one], ordered[two]), resamples, seed
        )
        for one, two in itertools.combinations(range(len(names)), 2)
    ]


def _text_tests(
    samples: Sequence[dict[str, dict[str, Any]]],
    names: Sequence[str],
    resamples: int,
    seed: int,
    unpaired: list[str],
) -> list[Test]:
    """Differences of bits per byte; windows pair only where both models cut the text alike."""
    tests = []
    cuts = [{identity: row["bytes"] for identity, row in run.items()} for run in samples]
    for one, two in itertools.combinations(range(len(names)), 2):
        if cuts[one] != cuts[two]:
            unpaired.append(
                f"bits per byte of {names[one]} and {names[two]} have no interval: the two cut the "
                f"text into other windows (tokenizer or context)"
            )
            continue
        ids = [identity for identity, size in cuts[one].items() if size]
        if len(ids) < 2:
            continue
        sizes = [cuts[one][identity] for identity in ids]
        bits = [
            [run[i]["nats"] / math.log(2.0) / size for i, size in zip(ids, sizes, strict=True)]
            for run in (samples[one], samples[two])
        ]
        difference = paired_bootstrap(*bits, sizes, 0.95, resamples, seed)
        tests.append(Test(BPB, "bits per byte", names[one], names[two], difference))
    return tests


def _common_tasks(
    runs: Sequence[dict[str, Any]], names: Sequence[str], only: Sequence[str]
) -> list[str]:
    if only:
        for run, name in zip(runs, names, strict=True):
            missing = [task for task in only if task not in run["tasks"]]
            if missing:
                raise ConfigError(
                    f"{name} has no {', '.join(missing)}; its tasks are {', '.join(run['tasks'])}"
                )
        return list(only)
    tasks = list(runs[0]["tasks"])
    for run, name in zip(runs, names, strict=True):
        if set(run["tasks"]) != set(tasks):
            raise ConfigError(
                f"tasks differ: {names[0]} has {', '.join(tasks)}, {name} has "
                f"{', '.join(run['tasks'])}; evaluate the same tasks"
            )
    return tasks


def _check_comparable(task: str, entries: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    fields = _COMPARABLE_TEXT if task == BPB else _COMPARABLE
    for entry, name in zip(entries[1:], names[1:], strict=True):
        differing = [
            f"{words}: {_fact(entries[0], field)} and {_fact(entry, field)}"
            for field, words in fields.items()
            if _fact(entry, field) != _fact(entries[0], field)
        ]
        if differing:
            raise ConfigError(
                f"{task} of {names[0]} and of {name} are not comparable; they differ in "
                + "; ".join(differing)
            )


def _fact(entry: dict[str, Any], field: str) -> Any:
    """A fact of a task; prompts that differ by words after the questions are the same problems."""
    if field == "prompts_sha256":
        return entry.get("problems_sha256", entry.get(field))
    return entry.get(field)


if __name__ == "__main__":
    supervise(__spec__)
    raise SystemExit(main())
