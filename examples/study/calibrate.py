"""How long a training step of each variant takes, from short trainings in turn.

Other work on the machine slows all variants of a round alike: ratios are taken within a round, and
their median over the rounds counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from examples.study.config import StudyConfig
from examples.study.plan import Step
from mhc_model.errors import DataError
from mhc_model.files import read_lines, replace_json

CALIBRATION = "calibration.json"


def read_calibration(directory: Path) -> dict[str, Any] | None:
    """What was measured, None if nothing was.

    Raises:
        DataError: if the file is not what `measure` wrote.
    """
    path = directory / CALIBRATION
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["ratios"], found["seconds"], found["rounds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__} {error}") from None
    return found


def measure(config: StudyConfig, directory: Path, steps: list[Step]) -> dict[str, Any]:
    """Reads the short trainings and writes calibration.json.

    Args:
        config: of the study.
        directory: of the study.
        steps: the calibration's, all of them done.
    """
    rounds: dict[str, dict[str, float]] = {}
    for step in steps:
        _, number, variant = step.name.split("/")
        path = directory / step.name / "metrics.jsonl"
        rounds.setdefault(number, {})[variant] = step_seconds(path, config.calibration.untimed)
    found = summarise(list(rounds.values()), config.reference)
    replace_json(directory / CALIBRATION, found)
    return found


def step_seconds(metrics: Path, untimed: int) -> float:
    """Median seconds of the steps of a training after the first `untimed`."""
    rows = [json.loads(line) for line in read_lines(metrics)]
    return median(row["dt"] for row in rows if row["step"] > untimed)


def summarise(rounds: list[dict[str, float]], reference: str) -> dict[str, Any]:
    """Ratios and seconds of every variant.

    Args:
        rounds: variant -> seconds of a step, a dictionary a round.
        reference: variant whose ratio is 1.
    """
    variants = list(rounds[0])
    return {
        "reference": reference,
        "ratios": {
            name: median(entry[name] / entry[reference] for entry in rounds) for name in variants
        },
        "seconds": {name: median(entry[name] for entry in rounds) for name in variants},
        "rounds": rounds,
    }


def words(found: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    parts = [
        f"{name} {1000 * found['seconds'][name]:.0f} ms ({ratio:.2f})"
        for name, ratio in found["ratios"].items()
    ]
    return f"a step takes: {', '.join(parts)}; in brackets over {found['reference']}, in turn"
