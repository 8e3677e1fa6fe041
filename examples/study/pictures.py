"""Pictures of a study: curves by tokens and by time, dots by seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evals.report import COLOURS, Picture, pictures
from examples.study.config import StudyConfig
from examples.study.findings import BUDGETS, All
from examples.study.gates import MODELS
from examples.study.plan import TIME, TOKENS
from examples.study.results import ACCURACY
from mhc_model.routing import bars, plot


def curves(config: StudyConfig, scores: All, seconds: Mapping[str, float] | None) -> Picture:
    """Held-out bits per byte of training, means over seeds, by tokens and by time."""
    figure, ((left, right),) = pictures.new_figure(8.0, 3.2, 1, 2)
    per_step = config.train["total_batch_tokens"]
    text: dict[str, list[tuple[float, float]]] = {}
    for number, variant in enumerate(config.variants):
        colour = COLOURS[number % len(COLOURS)]
        look = {"color": colour, "marker": pictures.MARKERS[number % len(pictures.MARKERS)]}
        for ax, budget in ((left, TOKENS), (right, TIME)):
            seeds = scores[budget][variant]
            if not seeds or (ax is right and seconds is None):
                continue
            scale = per_step / 1e6 if ax is left or seconds is None else seconds[variant]
            for one in seeds.values():
                ax.plot(*_scaled(one.curve, scale), color=colour, alpha=0.25, linewidth=0.8)
            mean = _mean([one.curve for one in seeds.values()])
            ax.plot(*_scaled(mean, scale), label=variant, linewidth=1.4, markersize=4, **look)
            if ax is left:
                text[variant] = [(step * scale, value) for step, value in mean]
    left.set(xlabel="training tokens, millions", ylabel="held-out bits per byte")
    right.set(xlabel="training time, seconds of the calibration")
    for ax in (left, right):
        ax.set_yscale("log")
    left.legend(frameon=False)
    return Picture(
        "curves",
        "Learning by tokens and by time",
        "Held-out bits per byte (logarithmic) of the built-in problems under training: means over "
        "seeds, thin lines are seeds. Left: trainings of the same tokens. Right: of the same time.",
        figure,
        plot(text) if text else "",
    )


def _scaled(curve: Any, scale: float) -> tuple[list[float], list[float]]:
    return [step * scale for step, _ in curve], [value for _, value in curve]


def _mean(found: list[tuple[tuple[int, float], ...]]) -> list[tuple[int, float]]:
    """Over seeds, at the steps that all have."""
    rows = [dict(curve) for curve in found]
    shared = sorted(set.intersection(*(set(row) for row in rows)))
    return [(step, float(np.mean([row[step] for row in rows]))) for step in shared]


def dots(config: StudyConfig, scores: All) -> Picture:
    """Accuracy of every seed, a column a variant, a line a seed."""
    figure, (axes,) = pictures.new_figure(8.0, 3.2, 1, 2)
    means: dict[str, float] = {}
    places = {variant: place for place, variant in enumerate(config.variants)}
    for ax, budget in zip(axes, (TOKENS, TIME), strict=True):
        for number, seed in enumerate(config.seeds):
            points = [
                (places[variant], 100 * seeds[seed].figures[ACCURACY])
                for variant, seeds in scores[budget].items()
                if seed in seeds
            ]
            if points:
                look = {"color": COLOURS[number % len(COLOURS)], "label": f"seed {seed}"}
                ax.plot(*zip(*points, strict=True), marker="o", linewidth=0.7, alpha=0.8, **look)
        for variant, seeds in scores[budget].items():
            if seeds:
                mean = float(np.mean([one.figures[ACCURACY] for one in seeds.values()]))
                ax.hlines(100 * mean, places[variant] - 0.25, places[variant] + 0.25, color="black")
                means[f"{variant}, {BUDGETS[budget]}"] = 100 * mean
        ax.set_xticks(range(len(places)), list(places))
        ax.set(title=BUDGETS[budget], ylabel="strict accuracy, %")
    axes[0].legend(frameon=False, fontsize=7)
    return Picture(
        "accuracy",
        "Accuracy by seed",
        "Held-out problems: a colour a seed, black bars are means over seeds.",
        figure,
        bars(means, high=100.0) if means else "",
    )


def rewards(ablations: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Picture:
    """Reward of every way to choose gates, a dot a seed."""
    count = len(ablations)
    figure, (axes,) = pictures.new_figure(4.2 * count, 3.2, 1, count)
    means: dict[str, float] = {}
    for ax, (model, by_seed) in zip(axes, ablations.items(), strict=True):
        names = list(next(iter(by_seed.values()))["arms"])
        for number, (seed, one) in enumerate(by_seed.items()):
            points = [
                (place, one["arms"][name]["reward"])
                for place, name in enumerate(names)
                if name in one["arms"]
            ]
            look = {"color": COLOURS[number % len(COLOURS)], "label": f"seed {seed}"}
            ax.plot(*zip(*points, strict=True), "o", markersize=4, alpha=0.8, **look)
        for name in names:
            own = [one["arms"][name]["reward"] for one in by_seed.values() if name in one["arms"]]
            means[f"{name}, {MODELS[model]}"] = float(np.mean(own))
        ax.set_xticks(range(len(names)), names, rotation=60, ha="right")
        ax.set(title=MODELS[model], ylabel="reward")
    axes[0].legend(frameon=False, fontsize=7)
    return Picture(
        "rewards",
        "Reward by gates",
        "Mean reward on held-out problems of every way to choose gates; a colour a seed.",
        figure,
        bars(means, low=min(0.0, *means.values())),
    )
