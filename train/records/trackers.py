"""Weights & Biases and MLflow, where a run asks for them: both are optional packages."""

from __future__ import annotations

import hashlib
import importlib
from types import ModuleType
from typing import Any, Protocol

from mhc_model.errors import ConfigError
from train.config import TrainConfig


class Tracker(Protocol):
    """Another home of the metrics."""

    def write(self, step: int, scalars: dict[str, float], texts: dict[str, str]) -> None:
        """Takes the metrics of one step."""

    def close(self) -> None:
        """Sends what is left."""


class WandbTracker:
    """One W&B run for one run directory, however often it is resumed."""

    def __init__(self, config: TrainConfig, location: str) -> None:
        wandb = import_tracker("wandb")
        self._run = wandb.init(
            project=config.trackers.project,
            name=config.name,
            id=hashlib.sha256(location.encode()).hexdigest()[:32],
            resume="allow",
            config=config.model_dump(mode="json"),
        )
        # A resumed run does steps again, and W&B takes no row of its own counter twice.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: dict[str, float], texts: dict[str, str]) -> None:
        self._run.log({"step": step, **scalars, **texts})

    def close(self) -> None:
        self._run.finish()


class MLflowTracker:
    """One MLflow run for one run directory, found again by a tag."""

    TAG = "mhc_gates.location"

    def __init__(self, config: TrainConfig, location: str) -> None:
        mlflow = import_tracker("mlflow")
        self._client = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(config.trackers.project)
        number = (
            self._client.create_experiment(config.trackers.project)
            if experiment is None
            else experiment.experiment_id
        )
        known = self._client.search_runs([number], f"tags.`{self.TAG}` = '{location}'")
        if known:
            self._id = known[0].info.run_id
            self._client.set_terminated(self._id, "RUNNING")
            return
        run = self._client.create_run(number, run_name=config.name, tags={self.TAG: location})
        self._id = run.info.run_id
        for name, value in _leaves("", config.model_dump(mode="json")).items():
            self._client.log_param(self._id, name, value)

    def write(self, step: int, scalars: dict[str, float], texts: dict[str, str]) -> None:
        for name, value in scalars.items():
            self._client.log_metric(self._id, name, value, step=step)
        for name, text in texts.items():
            self._client.log_text(self._id, text, f"{name}/step-{step:06d}.txt")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def make_trackers(config: TrainConfig, location: str) -> list[Tracker]:
    """Those that the configuration names.

    Args:
        config: of the run.
        location: of the run's directory, which tells one run from another.

    Raises:
        ConfigError: if a package is not installed.
    """
    chosen: list[Tracker] = []
    if config.trackers.wandb:
        chosen.append(WandbTracker(config, location))
    if config.trackers.mlflow:
        chosen.append(MLflowTracker(config, location))
    return chosen


def import_tracker(name: str) -> ModuleType:
    """The package of a tracker.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ConfigError(
            f"trackers.{name} is set, but the package {name} is not installed: "
            f"pip install 'mhc-gates[{name}]'"
        ) from None


def _leaves(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, part in value.items()
        for name, leaf in _leaves(f"{prefix}.{key}".lstrip("."), part).items()
    }
