"""Reads what the steps of a study left: scores by problem, curves, ablations. What is not there yet
is None."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals.results import RESULTS, mean_tokens, read_results, read_samples
from examples.study.config import StudyConfig
from examples.study.plan import TIME, TOKENS, run_name, seed_directory
from mhc_model.errors import DataError
from mhc_model.files import read_lines

ACCURACY, BITS, ANSWER_TOKENS = "accuracy", "bits per byte", "tokens per answer"
METRICS = (ACCURACY, BITS, ANSWER_TOKENS)
TASK = "gsm8k"


@dataclass(frozen=True)
class Scores:
    """One trained model on the held-out problems.

    Attributes:
        ids: of the problems.
        solved: (problems,) 1.0 where the strict answer is right.
        figures: metric -> mean; the accuracy as a share, bits per byte as the training's last
            validation has them: of what it learns from, answers alone with `loss_on: answers`.
        steps: of its training.
        curve: (step, held-out bits per byte) of its training.
    """

    ids: tuple[str, ...]
    solved: np.ndarray
    figures: dict[str, float]
    steps: int
    curve: tuple[tuple[int, float], ...]


def budget_run(config: StudyConfig, variant: str, budget: str) -> str:
    """Name of the training that a variant has in a budget; the reference has one for both."""
    return run_name(variant, TOKENS if variant == config.reference else budget)


def read_scores(directory: Path, seed: int, run: str) -> Scores | None:
    """Of one training and its evaluation.

    Raises:
        DataError: if files are there, but not what the commands write.
    """
    place = directory / seed_directory(seed)
    evals, metrics = place / f"{run}-evals", place / run / "metrics.jsonl"
    if not (evals / RESULTS).exists() or not metrics.exists():
        return None
    results, rows = read_results(evals), read_samples(evals, TASK)
    if TASK not in results["tasks"] or not rows:
        raise DataError(f"{evals} has no results of {TASK}, which a study compares")
    solved = np.array([float(row["strict"]) for row in rows])
    figures = {ACCURACY: float(solved.mean())}
    if (tokens := mean_tokens(results["tasks"][TASK])) is not None:
        figures[ANSWER_TOKENS] = tokens
    training = [json.loads(line) for line in read_lines(metrics)]
    curve = tuple((row["step"], row["val_bpb"]) for row in training if "val_bpb" in row)
    if curve:
        figures[BITS] = float(curve[-1][1])
    ids = tuple(row["id"] for row in rows)
    return Scores(ids, solved, figures, training[-1]["step"], curve)


def read_all(config: StudyConfig, directory: Path) -> dict[str, dict[str, dict[int, Scores]]]:
    """Budget -> variant -> seed -> scores, of what is there."""
    found: dict[str, dict[str, dict[int, Scores]]] = {}
    for budget in (TOKENS, TIME):
        found[budget] = {variant: {} for variant in config.variants}
        for variant, seed in ((v, s) for v in config.variants for s in config.seeds):
            scores = read_scores(directory, seed, budget_run(config, variant, budget))
            if scores is not None:
                found[budget][variant][seed] = scores
    return found


def read_ablation(directory: Path, seed: int, name: str) -> dict[str, Any] | None:
    """results.json of an ablation of gates, and what each arm earned on each problem as
    `rewards`: arm -> array.

    Raises:
        DataError: if files are there, but not what the command writes.
    """
    place = directory / seed_directory(seed) / name
    path = place / "results.json"
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["rewards"] = {run["arm"]: _rewards(place, run) for run in found["runs"]}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__} {error}") from None
    return found


def _rewards(place: Path, run: dict[str, Any]) -> np.ndarray:
    name = run["arm"].replace(":", "-")
    name = name if run["seed"] is None else f"{name}-seed{run['seed']}"
    lines = read_lines(place / "arms" / name / "samples.jsonl")
    return np.array([json.loads(line)["reward"] for line in lines])
