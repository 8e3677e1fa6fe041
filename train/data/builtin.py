"""The built-in problems of a run, each once for every behaviour that it is learned under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from evals.problems import (
    STYLES,
    Problem,
    Style,
    expected_style,
    load_problems,
    restyle,
    with_words,
)
from mhc_model.config import Behaviour
from mhc_model.errors import ConfigError
from train.config import DataConfig
from train.data.groups import Group

WHERE = "data.builtin_behaviours"


class Asked(NamedTuple):
    """A question with its answer, as it is learned.

    Attributes:
        problem: with words behind the question where the configuration wants them.
        group: of its row.
        question: without words; None of a row that says nothing of gates. It decides which rows are
            held out, so that a question is on the same side in all its styles.
    """

    problem: Problem
    group: Group | None = None
    question: str | None = None


def builtin_problems(
    config: DataConfig, behaviours: Mapping[str, Behaviour], split: str
) -> list[Asked]:
    """Those of a split; none without `builtin_levels`.

    Args:
        config: levels, counts and names.
        behaviours: what the names may be, and their styles; where it is empty, any style.
        split: "train", or "test" for the held-out ones.

    Raises:
        ConfigError: if a name is unknown, or has no style.
    """
    if not config.builtin_levels:
        return []
    names = config.builtin_behaviours
    styles = [_style(name, behaviours) for name in names]
    source = "builtin:" + ",".join(map(str, config.builtin_levels))
    count = config.builtin_count
    if split == "test":
        count = max(1, config.validation_documents // max(1, len(names)))
    problems = load_problems(source, split, count)
    if not names:
        return [Asked(problem) for problem in problems]
    asked = []
    for place in range(count):
        # The others of a problem are far away: in a sequence they would give the answer away.
        for number, (name, style) in enumerate(zip(names, styles, strict=True)):
            problem = restyle(problems[(place + number * count // len(names)) % count], style)
            if config.style_words:
                asked.append(Asked(with_words(problem, name), None, problem.question))
            else:
                asked.append(Asked(problem, name, problem.question))
    return asked


def _style(name: str, behaviours: Mapping[str, Behaviour]) -> Style:
    if behaviours and name not in behaviours:
        raise ConfigError(
            f"{WHERE} has {name!r}; the names in behaviours are {', '.join(behaviours)}"
        )
    if name in behaviours:
        style = expected_style(name, behaviours[name])
    else:
        style = next((style for style in STYLES if style == name), None)
    if style is None:
        raise ConfigError(
            f"{WHERE} has {name!r}, which is no style of answers ({', '.join(STYLES)}): give "
            f"behaviours.{name}.style"
        )
    return style
