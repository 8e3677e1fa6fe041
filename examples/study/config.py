"""Configuration of `python -m examples.study`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mhc_model.settings import Settings

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# Names that the study itself gives to directories of a seed.
BEHAVIOURS, NO_BEHAVIOURS = "behaviours", "no-behaviours"
GATES_WITHOUT, GATES_WITH = "gates-without", "gates-with"
# What the study sets in the configurations that it holds.
OWN = {
    "train": ("name", "storage", "seed"),
    "evals": ("checkpoint", "out"),
    "ablation": ("name", "storage", "checkpoint", "seeds"),
}


class CalibrationSettings(Settings):
    """Short trainings of every variant in turn, before anything else: how long a step takes."""

    rounds: int = Field(3, ge=1, description="times that every variant is timed")
    steps: int = Field(24, ge=2, description="steps of each of these trainings")
    untimed: int = Field(4, ge=1, description="steps at the start that do not count")

    @model_validator(mode="after")
    def _check_steps(self) -> CalibrationSettings:
        if self.untimed >= self.steps:
            raise ValueError(
                f"untimed is {self.untimed}, of {self.steps} steps: none is left to time"
            )
        return self


class StudyConfig(Settings):
    """Variants of one training, each with every seed, at the same tokens and at the same time."""

    name: str = Field(
        "study", pattern=NAME, description="of the study and its directory; the same name resumes"
    )
    storage: str = Field("runs", description="directory of studies; made absolute")
    seeds: tuple[int, ...] = Field(
        (0, 1, 2, 3, 4), min_length=1, description="of the trainings, done seed by seed"
    )
    train: dict[str, Any] = Field(
        {}, description="configuration of `python -m train` that all variants share"
    )
    variants: dict[str, dict[str, Any]] = Field(
        {},
        description="name -> overrides of `train` by dotted keys, such as model.mhc.dynamic: false",
    )
    baseline: str = Field("plain", description="variant that all others are compared with")
    reference: str = Field(
        "mhc",
        description="variant that all others are compared with too; its training time is what the "
        "others get in trainings of the same time, and RL tunes its gates",
    )
    behaviours: dict[str, Any] = Field(
        {},
        description="overrides of the reference's training, for a model that has behaviours; none "
        "leaves it out",
    )
    gates_train: dict[str, Any] = Field(
        {},
        description="overrides of the reference's training for both models whose gates are tuned, "
        "the one with behaviours and one without; none tunes the reference as it is",
    )
    evals: dict[str, Any] = Field(
        {}, description="configuration of `python -m evals` for every trained variant"
    )
    ablation: dict[str, Any] = Field(
        {},
        description="configuration of `python -m rl.ablate` for the reference of each seed, with "
        "and without behaviours; none leaves gates out",
    )
    calibration: CalibrationSettings = Field(
        CalibrationSettings(), description="how the time of a step is measured"
    )
    lanes: int = Field(
        2, ge=1, description="commands that run at once; each has train.workers of its own"
    )
    report_only: bool = Field(
        False, description="run nothing; write the report of what is there so far"
    )

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds are {self.seeds}: each at least 0, and once")
        for field in ("baseline", "reference"):
            if getattr(self, field) not in self.variants:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}; the variants are "
                    f"{', '.join(self.variants)}"
                )
        if self.baseline == self.reference:
            raise ValueError(f"baseline and reference are both {self.baseline!r}")
        for name in self.variants:
            if not name.replace("-", "").replace("_", "").isalnum() or name in (
                BEHAVIOURS,
                NO_BEHAVIOURS,
            ):
                raise ValueError(
                    f"variant {name!r}: a name has letters, digits, - and _, and is not "
                    f"{BEHAVIOURS!r}"
                )
        for field, own in OWN.items():
            if taken := [name for name in own if name in getattr(self, field)]:
                raise ValueError(f"{field} has {', '.join(taken)}, which the study sets itself")
        steps = self.train.get("steps")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"train.steps is {steps!r}; it must be a number, at least 1")
        tokens = self.train.get("total_batch_tokens")
        if not isinstance(tokens, int) or tokens < 1:
            raise ValueError(
                f"train.total_batch_tokens is {tokens!r}; it must be a number, at least 1"
            )
        return self
