"""The gates that are measured: those of the behaviours, between neighbours, and the learned ones.

Behaviours are ordered by the mean of the gates that stand for them. Neighbours are joined by a
straight line in the space of all 2L gates, with points at equal distances on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from evals.problems import Style, expected_style
from mhc_model.config import ModelConfig
from mhc_model.errors import ConfigError
from mhc_model.gates import LEARNED, expand_gates


@dataclass(frozen=True)
class Point:
    """One choice of gates.

    Attributes:
        name: in tables and samples; a behaviour's own, or such as `direct..worked 1/4`.
        gates: as `--gates` of `python -m evals` takes them.
        place: behaviours are at 0, 1, 2, ... of the path through all of them; None for the learned
            gates, which are not on it.
        behaviour: whose gates they are; None for the others.
        style: that the behaviour asks for; None if it does not say.
    """

    name: str
    gates: str
    place: float | None
    behaviour: str | None = None
    style: Style | None = None


def control_points(config: ModelConfig, between: int, checkpoint: str = "the model") -> list[Point]:
    """The points in their order on the path, the learned gates last.

    Args:
        config: of a model with behaviours.
        between: points between two neighbours, at least 0.
        checkpoint: its name, for the errors.

    Raises:
        ConfigError: if the model is plain or has no behaviours; it says what to do.
    """
    advice = (
        "train one with behaviours in its configuration, such as `behaviours: {direct: {gates: "
        "[0.0, 0.3]}, worked: {gates: [0.7, 1.0]}}` (docs/training.md), and give its directory"
    )
    if config.gateless is not None:
        raise ConfigError(
            f"{checkpoint} is {config.gateless}: it has no gates to control it by; {advice}"
        )
    if not config.behaviours:
        raise ConfigError(f"{checkpoint} has no behaviours, so its gates mean nothing; {advice}")
    meant = {
        name: expand_gates(behaviour.representative, config.n_layers)
        for name, behaviour in config.behaviours.items()
    }
    order = sorted(meant, key=lambda name: (float(meant[name].mean()), name))
    points = [_behaviour(config, order[0], 0)]
    for index, (low, high) in enumerate(pairwise(order)):
        for step in range(1, between + 1):
            share = step / (between + 1)
            gates = meant[low] + share * (meant[high] - meant[low])
            name = f"{low}..{high} {step}/{between + 1}"
            points.append(Point(name, _argument(gates), index + share))
        points.append(_behaviour(config, high, index + 1))
    return [*points, Point(LEARNED, LEARNED, None)]


def _behaviour(config: ModelConfig, name: str, place: int) -> Point:
    style = expected_style(name, config.behaviours[name])
    return Point(name, name, float(place), name, style)


def _argument(gates: Tensor) -> str:
    return ",".join(f"{value:.9g}" for value in gates.clamp(0.0, 1.0).tolist())
