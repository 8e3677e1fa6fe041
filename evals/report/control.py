"""What gates do to answers: tables, picture and section of what `python -m evals.control` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from evals.problems import STYLES
from evals.report.document import Document
from evals.report.pictures import COLOURS, MARKERS, Picture, new_figure
from evals.report.runs import Runs
from evals.results import interval, markdown, percent
from mhc_model.routing import plot

NO_STYLE = "none"
GATE = "gate"
GAP = 0.12  # of the path's length, between its end and the learned gates


def control_section(document: Document, runs: Runs) -> None:
    """Tables, leakage and picture of every control.json among the runs."""
    for number, (path, found) in enumerate(runs.controls.items(), start=1):
        document.heading("Control" if number == 1 else f"Control ({path.name})")
        problems = found["problems"]
        document.paragraph(
            f"What the gates do to the answers of `{found['checkpoint']['path']}`: "
            f"{problems['n']} held-out problems of {problems['source']} at every choice of gates. "
            "A style is told from an answer's text by rule. Leakage is the share of answers in "
            "another style than the behaviour asks for."
        )
        document.paragraph(leakage_words(found))
        for title, table in control_tables(found):
            document.paragraph(f"**{title}**")
            document.markdown_table(table)
        document.picture(control_picture(found, "control" if number == 1 else f"control_{number}"))


def leakage_words(found: Mapping[str, Any]) -> str:
    """How often each behaviour's answers are in another style than it asks for, in a sentence."""
    said = [
        f"`{point['name']}` asks for {point['style']} answers, and "
        f"{_share(point['all']['leakage'])} are something else"
        for point in found["points"]
        if point["all"]["leakage"] is not None
    ]
    return "; ".join(said) + "." if said else "No behaviour says which style it asks for."


def control_tables(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Titles and Markdown tables: of all problems, and of each level where there are several."""
    points = found["points"]
    tables = [("All problems", _table(points, [point["all"] for point in points]))]
    for level in points[0]["levels"]:
        figures = [point["levels"][level] for point in points]
        tables.append((f"Level {level}", _table(points, figures)))
    return tables


def _table(points: Sequence[Mapping[str, Any]], figures: Sequence[Mapping[str, Any]]) -> str:
    shown = _styles(figures)
    rows = [
        [
            point["name"],
            _gates(point),
            *(_share(one["styles"][style]) for style in shown),
            percent(one["strict"]),
            interval(one["tokens"], 1),
            "" if one["leakage"] is None else _share(one["leakage"]),
        ]
        for point, one in zip(points, figures, strict=True)
    ]
    styles = ["no style" if style == NO_STYLE else style for style in shown]
    header = ["gates", "g", *styles, "accuracy, strict", "tokens per answer", "leakage"]
    return markdown(header, rows) + "\n\n" + f"{figures[0]['n']} problems; 95 % intervals."


def _styles(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that any answer has."""
    names = (*STYLES, NO_STYLE)
    return [name for name in names if any(one["styles"][name]["count"] for one in figures)]


def _gates(point: Mapping[str, Any]) -> str:
    if point["gate"] is not None:
        return f"{point['gate']:.3g}"
    return f"{min(point['gates']):.2f} to {max(point['gates']):.2f}"


def _share(entry: Mapping[str, Any]) -> str:
    return percent({"accuracy": entry["share"], "wilson_95": entry["wilson_95"]})


def control_picture(found: Mapping[str, Any], name: str = "control") -> Picture:
    """Shares of the styles and accuracy against the gates, tokens on a second axis; a panel a
    level where there are several. The learned gates stand apart, on the right.

    Args:
        found: what control.json holds.
        name: of the files.
    """
    points = found["points"]
    levels = list(points[0]["levels"])
    panels = {f"level {level}": [point["levels"][level] for point in points] for level in levels}
    panels = panels or {"all problems": [point["all"] for point in points]}
    places, label = _places(points)
    shown = _styles([one for panel in panels.values() for one in panel])
    figure, grid = new_figure(3.6 * len(panels) + 2.2, 3.4, 1, len(panels))
    axes, second = grid[0], []
    most = max(one["tokens"]["mean"] for panel in panels.values() for one in panel)
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        twin = ax.twinx()
        second.append(twin)
        _draw(ax, twin, places, points, panel, shown)
        ax.set(title=title, xlabel=label, ylim=(-0.03, 1.03))
        twin.set_ylim(0, 1.1 * max(most, 1.0))
        twin.grid(False)
        twin.spines["right"].set_visible(True)
        ax.set_xticks(places, _ticks(points, label == GATE), rotation=30, ha="right")
    axes[0].set_ylabel("share of answers")
    second[-1].set_ylabel("tokens per answer (dotted)")
    handles = [*axes[0].get_legend_handles_labels()[0], *second[0].get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return Picture(
        name,
        "What the gates do to answers",
        "Share of the answers in each style, accuracy and length under each behaviour's gates, on "
        "straight lines between neighbours, and under the learned gates; 95 % intervals.",
        figure,
        "\n\n".join(_text(title, places, panel, shown) for title, panel in panels.items()),
    )


def _draw(
    ax: Any,
    twin: Any,
    places: Sequence[float],
    points: Sequence[Mapping[str, Any]],
    panel: Sequence[Mapping[str, Any]],
    shown: Sequence[str],
) -> None:
    """One panel; the lines join the points of the path, the learned gates are the last point."""
    curves = [
        (
            "no style" if style == NO_STYLE else style,
            [one["styles"][style]["share"] for one in panel],
            [one["styles"][style]["wilson_95"] for one in panel],
            {"color": "#777777" if style == NO_STYLE else COLOURS[STYLES.index(style)]},
            MARKERS[(*STYLES, NO_STYLE).index(style)],
        )
        for style in shown
    ]
    accuracy = ([one["strict"][key] for one in panel] for key in ("accuracy", "wilson_95"))
    curves.append(("right (strict)", *accuracy, {"color": COLOURS[6], "linestyle": "--"}, "D"))
    for label, shares, bounds, look, marker in curves:
        _line(ax, places, shares, bounds, label, marker, look)
    tokens = [one["tokens"]["mean"] for one in panel]
    bounds = [
        one["tokens"]["bootstrap_95"] or (mean, mean)
        for one, mean in zip(panel, tokens, strict=True)
    ]
    _line(twin, places, tokens, bounds, "tokens", "x", {"color": COLOURS[3], "linestyle": ":"})
    for place, point in zip(places, points, strict=True):
        if point["behaviour"] is not None:
            ax.axvline(place, color="black", linewidth=0.5, alpha=0.3)


def _line(
    ax: Any,
    places: Sequence[float],
    values: Sequence[float],
    bounds: Sequence[Sequence[float]],
    label: str,
    marker: str,
    look: Mapping[str, Any],
) -> None:
    low, high = np.array(bounds, dtype=float).T
    means = np.array(values, dtype=float)
    # Rounding may put a share of exactly 0 or 1 outside its interval by an ulp.
    errors = np.maximum(0.0, np.stack([means - low, high - means]))
    path, apart = slice(None, -1), slice(-1, None)
    for part, own in ((path, {"label": label, **look}), (apart, {**look, "linestyle": "none"})):
        ax.errorbar(
            places[part],
            means[part],
            errors[:, part],
            marker=marker,
            markersize=4,
            capsize=2,
            **own,
        )


def _places(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], str]:
    """Where the points are drawn, and what the axis is: the gate where it is one number and grows
    along the path, else the place on the path. The learned gates, the last point, stand apart."""
    path = points[:-1]
    gates = [point["gate"] for point in path]
    is_number = all(gate is not None for gate in gates) and all(
        low < high for low, high in pairwise(gates)
    )
    found = gates if is_number else [point["place"] for point in path]
    length = max(found[-1] - found[0], 0.5)
    label = GATE if is_number else "from behaviour to behaviour"
    return [*found, found[-1] + GAP * length], label


def _ticks(points: Sequence[Mapping[str, Any]], with_gates: bool) -> list[str]:
    """Names of behaviours and of the learned gates; gates where they are what the axis shows."""
    names = []
    for point in points:
        name = "" if point["behaviour"] is None and point["place"] is not None else point["name"]
        gate = f"{point['gate']:.2g}" if with_gates and point["gate"] is not None else ""
        names.append(f"{name} {gate}".strip())
    return names


def _text(
    title: str,
    places: Sequence[float],
    panel: Sequence[Mapping[str, Any]],
    shown: Sequence[str],
) -> str:
    shares = {
        name: [
            (place, one["styles"][name]["share"]) for place, one in zip(places, panel, strict=True)
        ]
        for name in shown
    }
    shares["right"] = [
        (place, one["strict"]["accuracy"]) for place, one in zip(places, panel, strict=True)
    ]
    tokens = [(place, one["tokens"]["mean"]) for place, one in zip(places, panel, strict=True)]
    return (
        f"{title}: share of answers (the learned gates are the last point)\n{plot(shares)}\n\n"
        f"{title}: tokens per answer\n{plot({'tokens': tokens})}"
    )
