"""Pictures of training, routing and gates: matplotlib figures, each with a twin of characters.

Colours are Okabe and Ito's, which the colour-blind can tell apart; lines also differ in dash and
marker, and maps use cividis, so that all of them survive grey print. The same data give the same
SVG, byte for byte.

Axes of arrays: k sublayer, n streams (senders), m streams (receivers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from evals.statistics import wilson_interval
from mhc_model.routing import SublayerRouting, bars, heatmap, plot

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE = {
    "svg.hashsalt": "mhc-gates",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
SMOOTHING = 20  # steps in the mean of a loss curve

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: of its files.
        title: what it shows.
        caption: how to read it.
        figure: for SVG and PNG.
        text: its twin for terminals.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    text: str

    def save(self, directory: Path) -> tuple[Path, Path]:
        """Writes NAME.svg and NAME.png; returns both paths."""
        directory.mkdir(parents=True, exist_ok=True)
        vector, pixels = directory / f"{self.name}.svg", directory / f"{self.name}.png"
        with matplotlib.rc_context(STYLE):
            # No date, so that the same data give the same file.
            self.figure.savefig(vector, metadata={"Date": None, "Title": self.title})
            self.figure.savefig(pixels, dpi=150)
        return vector, pixels


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure in our style and its (rows, columns) axes; sizes are in inches."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}


def training_curves(losses: Mapping[str, Curve], bits: Mapping[str, Curve]) -> Picture:
    """Training loss (smoothed) and held-out bits per byte over the steps, a line a run."""
    figure, ((left, right),) = new_figure(7.5, 3.0, 1, 2)
    smooth = {name: _smooth(curve) for name, curve in losses.items()}
    for index, (name, curve) in enumerate(smooth.items()):
        left.plot(*zip(*curve, strict=True), label=name, linewidth=1.4, **_look(index))
    for index, (name, curve) in enumerate(bits.items()):
        marker = MARKERS[index % len(MARKERS)]
        right.plot(*zip(*curve, strict=True), label=name, marker=marker, **_look(index))
    left.set(xlabel="step", ylabel=f"training loss, mean of {SMOOTHING} steps")
    right.set(xlabel="step", ylabel="held-out bits per byte")
    left.legend(frameon=False)
    text = "training loss\n" + plot(smooth)
    if bits:
        text += "\n\nheld-out bits per byte\n" + plot(bits)
    return Picture(
        "training",
        "Loss and bits per byte",
        f"Training loss (nats per token, mean of {SMOOTHING} steps) and held-out bits per byte.",
        figure,
        text,
    )


def _smooth(curve: Curve) -> Curve:
    window = min(SMOOTHING, max(1, len(curve) // 4))
    steps, values = np.array(curve, dtype=float).T
    means = np.convolve(values, np.ones(window) / window, mode="valid")
    return list(zip(steps[window - 1 :].tolist(), means.tolist(), strict=True))


def mixing_maps(records: Sequence[SublayerRouting], names: Sequence[str]) -> Picture:
    """Mean H_res of every sublayer, one small map each; a row of the grid is a layer."""
    layers = len(records) // 2
    columns = min(8, layers) if layers > 6 else layers
    lines = -(-layers // columns)
    figure, axes = new_figure(1.15 * columns + 1.0, 2.5 * lines, 2 * lines, columns)
    image = None
    for ax in axes.flat:
        ax.set_visible(False)
    for index, (record, name) in enumerate(zip(records, names, strict=True)):
        layer, kind = divmod(index, 2)
        ax = axes[2 * (layer // columns) + kind, layer % columns]
        ax.set_visible(True)
        image = ax.imshow(record.res.numpy(), vmin=0.0, vmax=1.0, cmap="cividis")
        ax.set(title=name.replace("layer", "").replace("attention", "attn"))
        ax.title.set_fontsize(7)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(False)
    figure.colorbar(image, ax=axes, shrink=0.6, label="H_res")
    pairs = zip(names, records, strict=True)
    text = "\n".join(f"{name}\n{heatmap(record.res.tolist())}" for name, record in pairs)
    return Picture(
        "h_res",
        "H_res by layer",
        "Mean over tokens of the mixing matrix before the gate: rows send, columns receive; "
        "attention above, mlp below.",
        figure,
        text,
    )


def sublayer_bars(
    name: str, title: str, caption: str, label: str, values: Mapping[str, float], top: float | None
) -> Picture:
    """One bar a sublayer; `top` marks the largest possible value."""
    figure, ((ax,),) = new_figure(max(4.0, 0.32 * len(values) + 1.5), 2.6)
    kinds = ["attention" if key.endswith("attention") else "mlp" for key in values]
    for index, kind in enumerate(("attention", "mlp")):
        places = [place for place, own in enumerate(kinds) if own == kind]
        heights = [value for value, own in zip(values.values(), kinds, strict=True) if own == kind]
        hatch = None if index == 0 else "///"
        ax.bar(places, heights, color=COLOURS[index], hatch=hatch, edgecolor="white", label=kind)
    if top is not None:
        ax.axhline(top, color="black", linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(values)), [key.split(".")[0][5:] for key in values])
    ax.set(xlabel="layer", ylabel=label)
    ax.legend(**BESIDE)
    return Picture(name, title, caption, figure, bars(values, high=top))


def coefficient_maps(records: Sequence[SublayerRouting], names: Sequence[str]) -> Picture:
    """Mean H_pre and H_post: a row a sublayer, a column a stream."""
    figure, ((left, right),) = new_figure(6.0, 0.22 * len(records) + 1.4, 1, 2)
    parts = ((left, "H_pre", 1.0, "pre"), (right, "H_post", 2.0, "post"))
    for ax, title, top, field in parts:
        values = np.stack([getattr(record, field).numpy() for record in records])
        image = ax.imshow(values, vmin=0.0, vmax=top, cmap="cividis", aspect="auto")
        ax.set(title=title, xlabel="stream")
        ax.set_yticks(range(len(names)), names if ax is left else [])
        ax.grid(False)
        figure.colorbar(image, ax=ax)
    text = "\n".join(
        f"{title} (0 to {top:g})\n"
        + heatmap([getattr(r, field).tolist() for r in records], 0.0, top, names)
        for _, title, top, field in parts
    )
    return Picture(
        "h_pre_post",
        "What sublayers read and write",
        "Mean over tokens of H_pre (how much of each stream a sublayer reads) and H_post (how much "
        "of its output each stream gets).",
        figure,
        text,
    )


def gain_over_depth(gains: Sequence[float]) -> Picture:
    """Composite gain after each sublayer."""
    figure, ((ax,),) = new_figure(4.5, 2.6)
    depth = range(1, len(gains) + 1)
    ax.plot(depth, gains, marker="o", color=COLOURS[0])
    ax.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel="sublayers passed", ylabel="composite gain")
    if max(gains) - min(gains) < 1e-3:  # rounding drawn large would look like a finding
        ax.set_ylim(0.9, 1.1)
    curve = list(zip(map(float, depth), gains, strict=True))
    return Picture(
        "composite_gain",
        "Composite gain over depth",
        "Largest absolute row or column sum of the product of a token's mixings so far; 1 for "
        "doubly stochastic matrices.",
        figure,
        plot({"gain": curve}),
    )


def gate_distribution(gates: np.ndarray, names: Sequence[str], learned: Sequence[float]) -> Picture:
    """Gates that a policy chose, a box a sublayer, beside the learned ones.

    Args:
        gates: (problems, k).
        names: of the sublayers.
        learned: (k,).
    """
    figure, ((ax,),) = new_figure(max(4.5, 0.4 * len(names) + 1.5), 3.0)
    ax.boxplot(gates, widths=0.6, whis=(0, 100), medianprops={"color": COLOURS[1], "linewidth": 2})
    ax.plot(range(1, len(names) + 1), learned, "D", color=COLOURS[0], label="learned")
    ax.set_xticks(range(1, len(names) + 1), names, rotation=60, ha="right")
    ax.set(ylabel="gate", ylim=(-0.03, 1.03))
    ax.legend(**BESIDE)
    means = {name: float(mean) for name, mean in zip(names, gates.mean(axis=0), strict=True)}
    return Picture(
        "rl_gates",
        "Gates that RL found",
        "Gates of the policy on the evaluated problems: median, quartiles, extremes; diamonds are "
        "the learned gates.",
        figure,
        "mean gate of the policy\n" + bars(means, high=1.0),
    )


def gate_against_accuracy(
    gates: np.ndarray,
    solved: np.ndarray,
    names: Sequence[str],
    parts: int = 5,
    what: str = "solved",
) -> Picture:
    """Share of solved problems by the gate of each sublayer, in equal parts of [0, 1].

    Args:
        gates: (rollouts, k) as tried.
        solved: (rollouts,) 0 or 1; or any numbers, whose means are shown.
        names: of the sublayers.
        parts: of the range.
        what: `solved` in words.
    """
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = new_figure(1.9 * columns + 1.0, 1.7 * lines + 0.4, lines, columns)
    text = []
    edges = np.linspace(0.0, 1.0, parts + 1)
    is_share = bool(np.isin(solved, (0, 1)).all())
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax, name, column in zip(axes.flat, names, gates.T, strict=False):
        bins = np.clip(np.digitize(column, edges) - 1, 0, parts - 1)
        values: dict[str, float] = {}
        for part in range(parts):
            own = solved[bins == part]
            if not len(own):
                continue
            mean = float(own.mean())
            low, high = _interval(own, is_share)
            middle = (edges[part] + edges[part + 1]) / 2
            ax.errorbar(
                middle, mean, [[mean - low], [high - mean]], fmt="o", color=COLOURS[0], capsize=2
            )
            values[f"{edges[part]:.1f} to {edges[part + 1]:.1f} (n = {len(own)})"] = mean
        ax.axhline(float(solved.mean()), color="black", linewidth=0.8, linestyle=":")
        ax.set_title(name, fontsize=8)
        ax.set(xlim=(0, 1))
        low = 0.0 if is_share else min(0.0, *values.values())
        text.append(f"{name}\n{bars(values, low=low, high=1.0 if is_share else None)}")
    figure.supxlabel("gate", fontsize=9)
    figure.supylabel(what, fontsize=9)
    return Picture(
        "gate_accuracy",
        f"Each gate against {'accuracy' if is_share else what}",
        "Rollouts of RL by the gate of one sublayer (the others as tried beside it), with "
        f"{'Wilson ' if is_share else ''}95 % intervals; the dotted line is the mean of all.",
        figure,
        "\n".join(text),
    )


def _interval(values: np.ndarray, is_share: bool) -> tuple[float, float]:
    if is_share:
        return wilson_interval(int(values.sum()), len(values))
    half = 1.96 * float(values.std()) / np.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def fixed_gates(entries: Mapping[float, Mapping[str, Any]], others: Mapping[str, Any]) -> Picture:
    """Accuracy under one gate for all sublayers, with Wilson intervals.

    Args:
        entries: gate -> accuracy and wilson_95.
        others: label -> accuracy, drawn as lines (learned gates, a policy).
    """
    figure, ((ax,),) = new_figure(5.5, 3.0)
    gates = sorted(entries)
    shares = np.array([entries[gate]["accuracy"] for gate in gates])
    bounds = np.array([entries[gate]["wilson_95"] for gate in gates]).T
    ax.errorbar(
        gates,
        shares,
        [shares - bounds[0], bounds[1] - shares],
        marker="o",
        capsize=3,
        color=COLOURS[0],
        label="one gate for all",
    )
    for index, (name, entry) in enumerate(others.items(), start=1):
        ax.axhline(entry["accuracy"], label=name, **_look(index))
    ax.set(xlabel="gate", ylabel="accuracy")
    ax.legend(**BESIDE)
    values = {f"g = {gate:g}": float(share) for gate, share in zip(gates, shares, strict=True)}
    values |= {name: float(entry["accuracy"]) for name, entry in others.items()}
    return Picture(
        "fixed_gates",
        "Accuracy under fixed gates",
        "One gate for all sublayers, Wilson 95 % intervals; lines are the other choices of gates "
        "on the same problems.",
        figure,
        bars(values, high=1.0),
    )


def kinds_map(table: np.ndarray, kinds: Sequence[str], names: Sequence[str], top: float) -> Picture:
    """Mean distance of the mixing from the identity by kind of token and sublayer.

    Args:
        table: (kinds, k).
        kinds: labels of its rows.
        names: of the sublayers.
        top: largest possible value.
    """
    figure, ((ax,),) = new_figure(max(5.0, 0.4 * len(names) + 2.0), 0.35 * len(kinds) + 1.8)
    image = ax.imshow(table, vmin=0.0, vmax=top, cmap="cividis", aspect="auto")
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set_xticks(range(len(names)), names, rotation=60, ha="right")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="|H_res' - I|")
    return Picture(
        "token_kinds",
        "Mixing by kind of token",
        f"Mean Frobenius distance of the gated mixing from the identity ({top:.2f} at most).",
        figure,
        heatmap(table.tolist(), 0.0, top, kinds),
    )
