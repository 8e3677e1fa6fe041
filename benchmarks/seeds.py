"""Trainings of several seeds side by side: held-out bits per byte with intervals, and curves.

Runs are grouped by their names without the number at the end: baseline-0, baseline-1, ... Intervals
are Student's, over seeds; differences are taken within a seed, from the first group.

    python -m benchmarks.seeds runs/books/baseline-{0,1,2} runs/books/mhc-{0,1,2} --out books.png
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

if not __package__:  # run as a file: Python looks beside it, not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evals.report import COLOURS, training_curves

CONFIDENCE = 0.95
BITS = "val_bpb"


class Mean(NamedTuple):
    """A mean and half the width of its interval; the half is NaN for one value."""

    value: float
    half: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.half:.4f}"


def mean(values: list[float]) -> Mean:
    """Student's interval of the mean."""
    count = len(values)
    if count < 2:
        return Mean(values[0], float("nan"))
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    return Mean(float(np.mean(values)), float(quantile * np.std(values, ddof=1) / count**0.5))


def read_groups(runs: list[Path]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Group -> seed -> rows of metrics.jsonl."""
    groups: dict[str, dict[str, list[dict[str, float]]]] = {}
    for run in runs:
        matched = re.fullmatch(r"(.+)-(\d+)", run.name)
        if not matched:
            raise SystemExit(f"{run}: the name must end in the seed, as baseline-0 does")
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        groups.setdefault(matched.group(1), {})[matched.group(2)] = [json.loads(x) for x in lines]
    return groups


def print_table(groups: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    first = next(iter(groups))
    print(f"{'':16}{'seeds':>6}  {'held-out bits per byte':24}{'minus ' + first:24}")
    final = {
        name: {s: rows[-1][BITS] for s, rows in seeds.items()} for name, seeds in groups.items()
    }
    for name, seeds in final.items():
        line = f"{name:16}{len(seeds):6}  {mean(list(seeds.values()))!s:24}"
        pairs = [seeds[seed] - final[first][seed] for seed in seeds if seed in final[first]]
        if name != first and pairs:
            line += f"{mean(pairs)!s:24}"
        print(line + "  " + " ".join(f"{value:.4f}" for value in seeds.values()))


def average(rows: dict[str, list[dict[str, float]]], key: str) -> list[tuple[float, Mean]]:
    """Mean over the seeds at every step that has the metric in all of them."""
    by_step: dict[float, list[float]] = {}
    for seed in rows.values():
        for row in seed:
            if key in row:
                by_step.setdefault(row["step"], []).append(row[key])
    return [(step, mean(values)) for step, values in by_step.items() if len(values) == len(rows)]


def draw(groups: dict[str, dict[str, list[dict[str, float]]]], out: Path) -> None:
    curves = {
        key: {name: average(seeds, key) for name, seeds in groups.items()} for key in ("loss", BITS)
    }
    means = {
        key: {name: [(step, m.value) for step, m in curve] for name, curve in named.items()}
        for key, named in curves.items()
    }
    picture = training_curves(means["loss"], means[BITS])
    right = picture.figure.axes[1]
    for colour, curve in zip(COLOURS, curves[BITS].values(), strict=False):
        steps, values = zip(*curve, strict=True)
        low, high = ([m.value + sign * m.half for m in values] for sign in (-1, 1))
        right.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.figure.savefig(out, dpi=150)
    print(out)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.seeds", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, NAME-SEED")
    parser.add_argument("--out", type=Path, help="PNG of the curves")
    options = parser.parse_args(argv)
    groups = read_groups(options.runs)
    print_table(groups)
    if options.out is not None:
        draw(groups, options.out)


if __name__ == "__main__":
    main()
