"""Whether our samples are lm-evaluation-harness's, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.results import read_samples
from evals.settings import N_SHOT
from mhc_model.errors import DataError

TOLERANCE = 1e-4  # of a log-likelihood
FILTERS = {"strict-match": "strict", "flexible-extract": "flexible"}


@dataclass(frozen=True)
class TaskAgreement:
    """Two scorings of one task.

    Attributes:
        task: its name.
        n: samples compared.
        differing: ids of samples whose decisions differ, or whose texts do.
        largest: largest difference of a log-likelihood; None for generated answers.
    """

    task: str
    n: int
    differing: tuple[str, ...]
    largest: float | None

    @property
    def agrees(self) -> bool:
        return not self.differing and (self.largest is None or self.largest <= TOLERANCE)

    def line(self) -> str:
        text = f"{self.task}: {self.n} samples, {len(self.differing)} decided differently"
        if self.differing:
            text += f" ({', '.join(self.differing[:5])})"
        if self.largest is not None:
            text += f", log-likelihoods differ by {self.largest:.2e} at most"
        return text


def agreement(harness: Mapping[str, Any], ours: Path, tasks: Sequence[str]) -> list[TaskAgreement]:
    """Compares the harness's results with a results directory, in the order of the problems.

    Args:
        harness: what `lm_eval.simple_evaluate` returned, samples included.
        ours: results of `python -m evals` on the same files.
        tasks: names.

    Raises:
        DataError: if the two have different numbers of samples.
    """
    found = []
    for task in tasks:
        rows = read_samples(ours, task)
        theirs = sorted(harness["samples"][task], key=lambda sample: sample["doc_id"])
        compare = _answers if task in N_SHOT else _choices
        found.append(compare(task, rows, theirs))
    return found


def _choices(task: str, rows: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> TaskAgreement:
    _check_count(task, rows, theirs)
    differing = []
    largest = 0.0
    for row, sample in zip(rows, theirs, strict=True):
        answers = [response[0] for response in sample["resps"]]
        same = (row["acc"], row["acc_norm"]) == (sample["acc"], sample["acc_norm"])
        if row["logprobs"] is None:  # does not fit our context; the harness cuts the choice
            differing.append(row["id"])
            continue
        gaps = [
            abs(ours - float(their[0]))
            for ours, their in zip(row["logprobs"], answers, strict=True)
        ]
        largest = max(largest, *gaps)
        if not same or row["greedy"] != [bool(their[1]) for their in answers]:
            differing.append(row["id"])
    return TaskAgreement(task, len(rows), tuple(differing), largest)


def _answers(task: str, rows: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> TaskAgreement:
    differing = []
    for name, extraction in FILTERS.items():
        samples = [sample for sample in theirs if sample["filter"] == name]
        _check_count(task, rows, samples)
        for row, sample in zip(rows, samples, strict=True):
            same = row["completion"] == sample["resps"][0][0]
            same = same and row[extraction] == bool(sample["exact_match"])
            if not same and row["id"] not in differing:
                differing.append(row["id"])
    return TaskAgreement(task, len(rows), tuple(differing), None)


def _check_count(task: str, rows: Sequence[Any], theirs: Sequence[Any]) -> None:
    if len(rows) != len(theirs):
        raise DataError(
            f"{task} has {len(rows)} samples here and {len(theirs)} of the harness; use the same "
            f"files and limit"
        )
