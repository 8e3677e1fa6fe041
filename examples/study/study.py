"""One study, from start to end or from where it stopped.

DIR/config.yaml        resolved configuration
DIR/calibration.json   how long a step of each variant takes
DIR/seed-N/            trainings, evaluations and ablations of a seed
DIR/steps/             of every step: configuration, what it said, and how long it took
DIR/study.md           the report, also as .html; study.json has its figures
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from examples.study.calibrate import measure, read_calibration, words
from examples.study.config import StudyConfig
from examples.study.plan import START_S, TRAIN, Step, calibration_steps, seed_steps
from examples.study.run import ROOT, STEPS, Runner, environment
from mhc_model.errors import ConfigError
from mhc_model.files import locked_directory
from mhc_model.settings import check_same_settings, dump_settings, validate_settings

CONFIG = "config.yaml"
# Seeds may be added or left out; what the others did stays true.
FREE_ON_RESUME = ("storage", "seeds", "lanes", "report_only")


def study_directory(config: StudyConfig) -> Path:
    return Path(os.path.abspath(os.path.expanduser(config.storage))) / config.name


def run_study(config: StudyConfig) -> Path:
    """Runs what is missing and writes the report; gives the study's directory.

    Raises:
        ConfigError: if the name belongs to a study with other settings, another process is at it,
            or a command refuses its configuration.
        StepFailed: if a command fails; the report of what is there is written all the same.
    """
    directory = study_directory(config)
    what = f"study {config.name} exists in {directory}"
    if config.report_only and not (directory / CONFIG).exists():
        raise ConfigError(f"there is no study in {directory}: nothing to report")
    taken = f"another process is at the study in {directory}; wait for it, or give another name"
    # A report reads only, so it may be written while the study goes on.
    if config.report_only:
        _check_same(config, directory, what)
        _report(config, directory)
        return directory
    with locked_directory(directory, taken):
        _check_same(config, directory, what)
        _run(config, directory)
    return directory


def _check_same(config: StudyConfig, directory: Path, what: str) -> None:
    saved = directory / CONFIG
    if saved.exists():
        values = yaml.safe_load(saved.read_text(encoding="utf-8"))
        before = validate_settings(StudyConfig, values, str(saved))
        # Through the same types as what was read.
        now = validate_settings(StudyConfig, config.model_dump(mode="json"), "configuration")
        check_same_settings(before, now, FREE_ON_RESUME, what)


def _run(config: StudyConfig, directory: Path) -> None:
    runner = Runner(directory, config.lanes)
    timing = calibration_steps(config, directory)
    if not (directory / CONFIG).exists():
        check_commands(config, directory)
    dump_settings(config, directory / CONFIG)
    print(f"study {config.name} in {directory}: {outlook(config)}", flush=True)
    found = read_calibration(directory)
    if found is None:
        print("calibration: every variant in turn, nothing beside it", flush=True)
        runner.run(timing, {}, lanes=1)
        found = measure(config, directory, timing)
    print(words(found), flush=True)
    steps = seed_steps(config, directory, found["ratios"])
    try:
        runner.run(steps, expected(steps, found))
    finally:
        _report(config, directory)


def check_commands(config: StudyConfig, directory: Path) -> None:
    """Asks each command whether it takes its configuration, before hours are spent.

    Raises:
        ConfigError: with what the command says against it.
    """
    first = config.model_copy(update={"seeds": config.seeds[:1]})
    known: set[tuple[str, ...]] = set()
    for step in seed_steps(first, directory):
        # A variant at the same time differs in steps only, and one evaluation stands for all.
        kind = (step.module, step.name.rpartition("-")[0] if step.module == TRAIN else "")
        if kind in known:
            continue
        known.add(kind)
        path = directory / STEPS / "checked.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(dict(step.values), sort_keys=False), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", step.module, "--config", str(path), "--dry-run"],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        path.unlink()
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            raise ConfigError(
                f"{step.name}: {said[-1].removeprefix('error: ') if said else 'its command fails'}"
            )


def expected(steps: Sequence[Step], found: dict[str, Any]) -> dict[str, float]:
    """Seconds of the trainings by the calibration; step -> seconds."""
    known = {}
    for step in steps:
        if step.module == TRAIN:
            variant = step.kind.rpartition("-")[0]  # of none for models whose gates are tuned
            a_step = found["seconds"].get(variant, found["seconds"][found["reference"]])
            known[step.name] = START_S + step.values["steps"] * a_step
    return known


def outlook(config: StudyConfig, directory: Path | None = None) -> str:
    """How many steps there are and how long they may take, before anything is measured."""
    place = study_directory(config) if directory is None else directory
    timing, steps = calibration_steps(config, place), seed_steps(config, place)
    seconds = sum(step.guess_s for step in timing)
    seconds += sum(step.guess_s for step in steps) / config.lanes
    return (
        f"{len(timing)} short trainings for the calibration, {len(steps)} steps of "
        f"{len(config.seeds)} seeds, {config.lanes} at once; about {seconds / 60:.0f} minutes "
        f"with a core for each"
    )


def whole_seeds(config: StudyConfig, directory: Path) -> list[int]:
    """Seeds of which every step is done."""
    found = read_calibration(directory)
    if found is None:
        return []
    runner = Runner(directory, 1)
    steps = seed_steps(config, directory, found["ratios"])
    return [
        seed
        for seed in config.seeds
        if all(runner.is_whole(step) for step in steps if step.seed == seed)
    ]


def _report(config: StudyConfig, directory: Path) -> None:
    from examples.study.report import REPORT, write_report

    whole = whole_seeds(config, directory)
    said = write_report(config, directory, whole)
    print(f"\n{len(whole)} of {len(config.seeds)} seeds are whole", flush=True)
    if said:
        print(said)
    print(f"\nreport: {directory / REPORT}", flush=True)
