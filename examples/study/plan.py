"""The steps of a study, in the order in which they are begun: seed by seed.

DIR/calibration/round-0/plain   short trainings
DIR/seed-0/mhc-tokens           a training; -time: as long as the reference trains
DIR/seed-0/mhc-tokens-evals     its evaluation
DIR/seed-0/behaviours           the reference, trained with behaviours
DIR/seed-0/no-behaviours        the reference with `gates_train`, if the study has that
DIR/seed-0/gates-without        the ablation of gates on that, else on mhc-tokens
DIR/seed-0/gates-with           the same on behaviours
DIR/steps/...                   of every step: configuration, what it said, and how long it took
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.study.config import (
    BEHAVIOURS,
    GATES_WITH,
    GATES_WITHOUT,
    NO_BEHAVIOURS,
    StudyConfig,
)
from examples.study.values import overridden

TOKENS, TIME = "tokens", "time"
TRAIN, EVALS, ABLATE = "train", "evals", "rl.ablate"
# Of a command beside its work, on two cores: starting Ray and torch, reading data, saving.
START_S = 15.0
# Before anything is measured: tokens of 1e6 parameters a second, evaluation, ablation.
GUESS_TOKENS_PER_S, GUESS_EVALS_S, GUESS_ABLATE_S = 5000.0, 20.0, 130.0


@dataclass(frozen=True)
class Step:
    """One command of a study.

    Attributes:
        name: of its directory below the study's, and of its files below `steps/`.
        module: what `python -m` runs.
        values: its configuration.
        result: the file, below the study's directory, that it writes when it is done.
        needs: names of the steps before it.
        seed: whose it is; None for the calibration.
        guess_s: seconds that it may take.
    """

    name: str
    module: str
    values: Mapping[str, Any]
    result: str
    needs: tuple[str, ...]
    seed: int | None
    guess_s: float

    @property
    def kind(self) -> str:
        """Its name without its seed's or its round's."""
        return self.name.rpartition("/")[2]


def run_name(variant: str, budget: str) -> str:
    """Name of a training, below its seed's directory."""
    return f"{variant}-{budget}"


def seed_directory(seed: int) -> str:
    return f"seed-{seed}"


def training_values(config: StudyConfig, variant: str) -> dict[str, Any]:
    """Configuration of a variant's training.

    Raises:
        ConfigError: if its overrides do not fit.
    """
    return overridden(config.train, config.variants[variant], f"variant {variant}")


def calibration_steps(config: StudyConfig, directory: Path) -> list[Step]:
    """Short trainings, every variant in each round, each round beginning with another one."""
    names, own, steps = list(config.variants), config.calibration, []
    few = {
        "steps": own.steps,
        "eval_every": own.steps,
        "checkpoint_every": own.steps,
        "log_every": own.steps,
        "keep_best": False,
    }
    if config.train.get("warmup_steps", 0) >= own.steps:
        few["warmup_steps"] = own.steps - 1
    for number in range(own.rounds):
        shift = number % len(names)
        for variant in names[shift:] + names[:shift]:
            values = training_values(config, variant) | few
            place = f"calibration/round-{number}"
            steps.append(_training(config, directory, place, variant, values, None))
    return steps


def seed_steps(
    config: StudyConfig, directory: Path, ratios: Mapping[str, float] | None = None
) -> list[Step]:
    """All steps after the calibration.

    Args:
        config: of the study.
        directory: absolute, of the study.
        ratios: variant -> time of its step over that of the reference; None guesses 1.

    Raises:
        ConfigError: if overrides do not fit.
    """
    steps: list[Step] = []
    for seed in config.seeds:
        steps += _steps_of_seed(config, directory, seed, ratios or {})
    return steps


def steps_at_same_time(config: StudyConfig, variant: str, ratios: Mapping[str, float]) -> int:
    """Training steps of a variant in the time in which the reference does its own."""
    return max(1, round(config.train["steps"] / ratios.get(variant, 1.0)))


def _steps_of_seed(
    config: StudyConfig, directory: Path, seed: int, ratios: Mapping[str, float]
) -> list[Step]:
    place, trainings, rest = seed_directory(seed), [], []
    for budget in (TOKENS, TIME):
        for variant in config.variants:
            if budget == TIME and variant == config.reference:
                continue  # it would be the same training again
            values = training_values(config, variant) | {"seed": seed}
            if budget == TIME:
                values["steps"] = steps_at_same_time(config, variant, ratios)
            name = run_name(variant, budget)
            training = _training(
                config, directory, place, name, values, seed, ratios.get(variant, 1.0)
            )
            trainings.append(training)
            rest.append(_evaluation(config, directory, training))
    models = {GATES_WITHOUT: f"{place}/{run_name(config.reference, TOKENS)}"}
    tuned = training_values(config, config.reference) | {"seed": seed}
    tuned = overridden(tuned, config.gates_train, "gates_train")
    if config.gates_train and config.ablation:
        trainings.insert(1, _training(config, directory, place, NO_BEHAVIOURS, tuned, seed))
        models[GATES_WITHOUT] = f"{place}/{NO_BEHAVIOURS}"
    if config.behaviours:
        values = overridden(tuned, config.behaviours, BEHAVIOURS)
        # Beside the reference: what waits for them can begin early.
        trainings.insert(1, _training(config, directory, place, BEHAVIOURS, values, seed))
        models[GATES_WITH] = f"{place}/{BEHAVIOURS}"
    if config.ablation:
        rest += [
            _ablation(config, directory, place, name, model, seed) for name, model in models.items()
        ]
    order = {step.name: number for number, step in enumerate(trainings)}
    # The longest first, so that the lanes end together.
    rest.sort(key=lambda step: (-step.guess_s, order.get(step.needs[0], 0)))
    return [*trainings, *rest]


def _training(
    config: StudyConfig,
    directory: Path,
    place: str,
    name: str,
    values: dict[str, Any],
    seed: int | None,
    ratio: float = 1.0,
) -> Step:
    full = values | {"name": name, "storage": str(directory / place)}
    tokens = values["steps"] * values["total_batch_tokens"]
    return Step(
        f"{place}/{name}",
        TRAIN,
        full,
        f"{place}/{name}/step-{values['steps']:06d}/model/model.safetensors",
        (),
        seed,
        START_S + ratio * tokens / GUESS_TOKENS_PER_S,
    )


def _evaluation(config: StudyConfig, directory: Path, training: Step) -> Step:
    name = f"{training.name}-evals"
    values = dict(config.evals) | {
        "checkpoint": str(directory / training.name),
        "out": str(directory / name),
    }
    result = f"{name}/results.json"
    return Step(name, EVALS, values, result, (training.name,), training.seed, GUESS_EVALS_S)


def _ablation(
    config: StudyConfig, directory: Path, place: str, name: str, model: str, seed: int
) -> Step:
    values = dict(config.ablation) | {
        "name": name,
        "storage": str(directory / place),
        "checkpoint": str(directory / model),
        "seeds": [seed],
    }
    if name == GATES_WITH and "against" in values:
        own = [f"behaviour:{one}" for one in config.behaviours.get("behaviours", {})]
        values["against"] = list(dict.fromkeys([*values["against"], *own]))
    result = f"{place}/{name}/results.json"
    return Step(f"{place}/{name}", ABLATE, values, result, (model,), seed, GUESS_ABLATE_S)
