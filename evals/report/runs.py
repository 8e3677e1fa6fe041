"""What run directories hold, for the report: trainings, evaluations, RL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evals.results import RESULTS, read_results
from evals.settings import POLICY
from mhc_model.errors import DataError
from mhc_model.files import read_own_rows
from mhc_model.gates import LEARNED

METRICS, CONFIG, ROLLOUTS, SWEEP, SUMMARY = (
    "metrics.jsonl",
    "config.yaml",
    "rollouts.jsonl",
    "sweep.json",
    "summary.json",
)
CONTROL = "control.json"
KEYS_OF_CONTROL = ("checkpoint", "problems", "behaviours", "points", "measured")
NO_GATES = "none: a plain model"  # what results say of its gates
PLAIN, LEARNED_GATES, RL_GATES = "baseline", "mHC, learned gates", "mHC, RL gates"


@dataclass(frozen=True)
class Training:
    """A run of `python -m train`."""

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def is_mhc(self) -> bool:
        return bool(self.config.get("model", {}).get("mhc"))

    @property
    def label(self) -> str:
        return f"{'mHC' if self.is_mhc else PLAIN} ({self.path.name})"

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, where it was measured."""
        return [(float(row["step"]), float(row[name])) for row in self.rows if name in row]

    def last(self, name: str) -> Any:
        """The metric's last value; None if it was never measured."""
        values = [row[name] for row in self.rows if name in row]
        return values[-1] if values else None


@dataclass(frozen=True)
class Tuning:
    """A run of `python -m rl`."""

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Results of `python -m evals`; `label` says model and gates."""

    path: Path
    results: dict[str, Any]
    label: str


@dataclass
class Runs:
    """All runs of a report, evaluations in the order baseline, learned gates, RL gates, others.

    `controls` has what each control.json holds, by its directory.
    """

    trainings: list[Training] = field(default_factory=list)
    tunings: list[Tuning] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    controls: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def evaluation(self, label: str) -> Evaluation | None:
        """The first evaluation with that label; if there is none, with words after it."""
        return next(iter(self.labelled(label)), None)

    def labelled(self, label: str) -> list[Evaluation]:
        """All evaluations with that label, then those with words after it."""
        own = [one for one in self.evaluations if one.label == label]
        told = [one for one in self.evaluations if without_words(one.label) == label]
        return own + [one for one in told if one not in own]

    def task(self, label: str, task: str) -> dict[str, Any] | None:
        """A task's entry of the first evaluation of that model and gates that has it."""
        first = self.evaluation(label)
        same = [one for one in self.labelled(label) if first and one.label == first.label]
        found = (one.results["tasks"].get(task) for one in same)
        return next((entry for entry in found if entry is not None), None)

    def fixed(self) -> dict[float, Evaluation]:
        """Evaluations with one number as gate."""
        found = {}
        for one in self.evaluations:
            try:
                found[float(one.results["settings"]["gates"])] = one
            except ValueError:
                continue
        return found


def find_runs(paths: Sequence[str]) -> Runs:
    """Reads run directories, or directories of them.

    Raises:
        DataError: if a path holds no run, or a file is damaged.
    """
    runs = Runs()
    for name in paths:
        path = Path(name)
        if not path.is_dir():
            raise DataError(f"{path} is not a directory; give run directories")
        before = _count(runs)
        for directory in (path, *sorted(one for one in path.iterdir() if one.is_dir())):
            _take(directory, runs)
        if _count(runs) == before:
            raise DataError(
                f"{path} holds no run: there is no {RESULTS}, {METRICS} or {CONTROL} in it or one "
                f"level below"
            )
    order = {PLAIN: 0, LEARNED_GATES: 1, RL_GATES: 2}
    runs.evaluations.sort(key=lambda one: order.get(without_words(one.label), 3))
    runs.trainings.sort(key=lambda one: one.is_mhc)
    return runs


def _count(runs: Runs) -> int:
    return len(runs.trainings) + len(runs.tunings) + len(runs.evaluations) + len(runs.controls)


def read_control(path: Path) -> dict[str, Any]:
    """Reads a control.json, or the one of a directory.

    Raises:
        DataError: if it is missing or not what `python -m evals.control` wrote.
    """
    path = path / CONTROL if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"control figures {path} cannot be read: {error}") from None
    missing = [key for key in KEYS_OF_CONTROL if not isinstance(found, dict) or key not in found]
    if missing:
        raise DataError(f"{path} is not of python -m evals.control: it has no {missing[0]!r}")
    return found


def _take(directory: Path, runs: Runs) -> None:
    if (directory / CONTROL).exists():
        runs.controls[directory] = read_control(directory)
    if (directory / RESULTS).exists():
        results = read_results(directory)
        runs.evaluations.append(Evaluation(directory, results, _label(results)))
        return
    if not ((directory / METRICS).exists() and (directory / CONFIG).exists()):
        return
    config = yaml.safe_load((directory / CONFIG).read_text(encoding="utf-8"))
    rows = _rows(directory / METRICS)
    if (directory / ROLLOUTS).exists():
        whole = next((directory / f for f in (SUMMARY, SWEEP) if (directory / f).exists()), None)
        summary = {} if whole is None else json.loads(whole.read_text(encoding="utf-8"))["summary"]
        rollouts = _rows(directory / ROLLOUTS)
        runs.tunings.append(Tuning(directory, config, rows, rollouts, summary))
    else:
        runs.trainings.append(Training(directory, config, rows))


def _label(results: dict[str, Any]) -> str:
    """Model and gates, and the words after the questions as they stand there, in brackets."""
    gates = results["settings"]["gates"]
    if results["gates"]["description"] == NO_GATES:
        label = PLAIN
    elif results["gates"]["description"].startswith("none"):
        label = "mHC without mixing"
    elif gates == LEARNED:
        label = LEARNED_GATES
    else:
        label = RL_GATES if gates.startswith(POLICY) else f"mHC, gates {gates}"
    words = results["settings"].get("words")
    return label if words is None else f"{label} ({words})"


def without_words(label: str) -> str:
    """An evaluation's label without the words after the questions."""
    return label.partition(" (")[0]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read_own_rows(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
