"""`python -m evals.compare A B C`: results side by side, and every two of them tested in pairs.

Runs are comparable only on the same problems with the same prompts and limits: anything else is
refused, saying what differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from tyro.conf import Positional

from evals.results import accuracies, markdown, percent, read_results, read_samples
from evals.settings import BPB
from evals.statistics import (
    Difference,
    McNemar,
    holm,
    mcnemar_exact,
    minimal_detectable_effect,
    paired_bootstrap,
    paired_permutation,
)
from mhc_model.errors import ConfigError
from mhc_model.settings import Settings, parse_command_line, reports_errors

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
    resamples: int = Field(10_000, ge=100, description="draws of each bootstrap interval")
    seed: int = Field(0, ge=0, description="of the draws")


@dataclass(frozen=True)
class Test:
    """Two runs on one metric.

    Attributes:
        task, metric: what was scored.
        first, second: labels of the runs.
        difference: second minus first, with its bootstrap interval.
        mcnemar: the exact test of an accuracy; None for others.
        holm_p: the p-value, corrected for all tests of the comparison.
        detectable: smallest difference that McNemar's test finds with probability 0.8 at these
            discordant problems; None where there are none, and without that test.
        permutation_p: p-value of a difference of means; None for accuracies and bits per byte.
    """

    task: str
    metric: str
    first: str
    second: str
    difference: Difference
    mcnemar: McNemar | None = None
    holm_p: float | None = None
    detectable: float | None = None
    permutation_p: float | None = None

    @property
    def p_value(self) -> float | None:
        """Before correction; None for bits per byte, which have an interval only."""
        return self.permutation_p if self.mcnemar is None else self.mcnemar.p_value


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


LEGEND = (
    "Difference: second minus first, paired bootstrap. Won, lost: problems that only the second, "
    "only the first run solved. p: McNemar, exact, for accuracies; for other means a paired "
    "permutation test. Holm: corrected for all tests of the table. "
    "Detectable: the smallest difference found with probability 0.8 at this number of discordant "
    "problems."
)


def tests_rows(tests: Sequence[Test]) -> tuple[list[str], list[list[str]]]:
    """Header and a row a test; differences in percentage points, or bits per byte."""
    header = ["metric", "runs", "difference [95 %]", "won, lost", "p", "p, Holm", "detectable"]
    return header, [_test_row(test) for test in tests]


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    settings = parse_command_line(
        CompareSettings, "evals.compare", "Compares results of python -m evals.", argv
    )
    found = compare(settings.results, settings.labels, settings.resamples, settings.seed)
    print(found.text())
    return 0


def compare(
    results: Sequence[str | Path],
    labels: Sequence[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares results of `python -m evals`.

    Args:
        results: results.json files or their directories.
        labels: one a run; empty takes the names of the directories.
        resamples: draws of each bootstrap interval.
        seed: of the draws.

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
    for task in _common_tasks(runs, names):
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
    return Comparison(names, runs, rows, corrected(tests), unpaired)


def _by_id(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {sample["id"]: sample for sample in samples}


def accuracy_test(
    task: str,
    metric: str,
    names: tuple[str, str],
    solved: tuple[Sequence[bool], Sequence[bool]],
    resamples: int = 10_000,
    seed: int = 0,
) -> Test:
    """Two runs on the same problems, at least two; Holm's correction is `corrected`'s to make.

    Args:
        task, metric: what was scored.
        names: of the first run and the second.
        solved: whether each run solved each problem, in the same order.
        resamples: draws of the bootstrap interval.
        seed: of the draws.
    """
    first, second = solved
    paired = mcnemar_exact(first, second)
    difference = paired_bootstrap(first, second, None, 0.95, resamples, seed)
    share = (paired.only_first + paired.only_second) / len(first)
    detectable = minimal_detectable_effect(len(first), share) if share else None
    return Test(task, metric, *names, difference, paired, paired.p_value, detectable)


def mean_test(
    task: str, metric: str, names: tuple[str, str], values: tuple[Sequence[float], Sequence[float]]
) -> Test:
    """As `accuracy_test`, of values that are no yes or no: tokens, rewards."""
    difference = paired_bootstrap(*values)
    return Test(task, metric, *names, difference, permutation_p=paired_permutation(*values))


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
            [run[i]["nats"] / np.log(2.0) / size for i, size in zip(ids, sizes, strict=True)]
            for run in (samples[one], samples[two])
        ]
        difference = paired_bootstrap(*bits, sizes, 0.95, resamples, seed)
        tests.append(Test(BPB, "bits per byte", names[one], names[two], difference))
    return tests


def corrected(tests: list[Test]) -> list[Test]:
    """The tests with Holm's p-values, corrected for all of them together."""
    positions = [i for i, test in enumerate(tests) if test.p_value is not None]
    p_values = [test.p_value for test in tests if test.p_value is not None]
    adjusted = dict(zip(positions, holm(p_values), strict=True))
    return [
        Test(**{**vars(test), "holm_p": adjusted.get(index)}) for index, test in enumerate(tests)
    ]


def _test_row(test: Test) -> list[str]:
    low, high = test.difference.interval
    pair = f"{test.second} - {test.first}"
    if test.mcnemar is None:
        difference = f"{test.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]"
        metric = test.metric if test.p_value is None else f"{test.task} {test.metric}"
        found = [test.p_value, test.holm_p]
        return [metric, pair, difference, "", *("" if p is None else f"{p:.3g}" for p in found), ""]
    points = [100 * value for value in (test.difference.value, low, high)]
    detectable = "" if test.detectable is None else f"{100 * test.detectable:.1f}"
    return [
        f"{test.task} {test.metric}",
        pair,
        f"{points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}]",
        f"{test.mcnemar.only_second}, {test.mcnemar.only_first}",
        f"{test.mcnemar.p_value:.3g}",
        f"{test.holm_p:.3g}",
        detectable,
    ]


def _common_tasks(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
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
            f"{words}: {entries[0].get(field)} and {entry.get(field)}"
            for field, words in fields.items()
            if entry.get(field) != entries[0].get(field)
        ]
        if differing:
            raise ConfigError(
                f"{task} of {names[0]} and of {name} are not comparable; they differ in "
                + "; ".join(differing)
            )


if __name__ == "__main__":
    raise SystemExit(main())
