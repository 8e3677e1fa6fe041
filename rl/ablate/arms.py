"""The arms of an ablation: their names, and what each needs to learn."""

from __future__ import annotations

import re
from typing import NamedTuple, get_args

from mhc_model.config import BEHAVIOUR_NAME, ActionSpace

LEARNED, KNOWN, BEHAVIOUR = "learned", "known", "behaviour"
PPO, BEST_CONSTANT, RANDOM, CEM = "ppo", "best_constant", "random", "cem"
REINFORCE, GRADIENT, GRADIENT_CONTEXTUAL = "reinforce", "gradient", "gradient_contextual"
METHODS = (PPO, BEST_CONSTANT, RANDOM, CEM, REINFORCE, GRADIENT, GRADIENT_CONTEXTUAL)
# One vector for all problems.
CONSTANT = (BEST_CONSTANT, CEM, GRADIENT)
SPACES: tuple[ActionSpace, ...] = get_args(ActionSpace)


class Arm(NamedTuple):
    """A way to choose gates, with the seed that it learned with."""

    name: str  # as in the configuration, or "learned", "g=0.5", "behaviour:NAME", "known"
    method: str
    space: ActionSpace
    seed: int | None = None  # None: nothing is learned or drawn

    @property
    def label(self) -> str:
        return self.name if self.seed is None else f"{self.name} seed {self.seed}"

    @property
    def directory(self) -> str:
        """Name of its directory."""
        name = self.name.replace(":", "-")
        return name if self.seed is None else f"{name}-seed{self.seed}"


def parse_arm(text: str, space: ActionSpace) -> tuple[str, ActionSpace]:
    """Method and action space of `METHOD` or `METHOD:SPACE`; of `behaviour:NAME` the method.

    Args:
        text: as in the configuration.
        space: of a method that names none.

    Raises:
        ValueError: naming what is allowed.
    """
    method, _, own = text.partition(":")
    if method == BEHAVIOUR and re.fullmatch(BEHAVIOUR_NAME, own):
        return method, space
    if method not in METHODS or own not in ("", *SPACES):
        raise ValueError(
            f"arm {text!r} is no METHOD, METHOD:ACTION_SPACE or {BEHAVIOUR}:NAME; methods: "
            f"{', '.join(METHODS)}; action spaces: {', '.join(SPACES)}"
        )
    return method, next((known for known in SPACES if known == own), space)


def fixed_name(gate: float) -> str:
    """Name of the arm that has this gate everywhere."""
    return f"g={gate:g}"


def behaviour_arm(name: str) -> str:
    """Name of the arm that has the gates which represent this behaviour."""
    return f"{BEHAVIOUR}:{name}"
