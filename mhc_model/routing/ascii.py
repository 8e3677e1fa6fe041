"""Pictures made of characters, for terminals and logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# From light to dark: as wide as one number's range of looks can be told apart in a terminal.
SHADES = " .:-=+*#%@"
MARKS = "ox+*#%@&"


def heatmap(
    rows: Sequence[Sequence[float]],
    low: float = 0.0,
    high: float = 1.0,
    labels: Sequence[str] = (),
) -> str:
    """A matrix as shades, two characters an entry so that it is about square.

    Args:
        rows: at least one, all of one length.
        low, high: drawn lightest and darkest; what lies outside is drawn as the nearer of them.
        labels: one a row, or none.
    """
    span = high - low if high > low else 1.0
    names = list(labels) or [""] * len(rows)
    width = max(map(len, names))
    lines = []
    for name, row in zip(names, rows, strict=True):
        shades = (min(1.0, max(0.0, (value - low) / span)) for value in row)
        cells = "".join(2 * SHADES[round(shade * (len(SHADES) - 1))] for shade in shades)
        lines.append(f"{name:<{width}} |{cells}|" if width else f"|{cells}|")
    return "\n".join(lines)


def bars(
    values: Mapping[str, float], width: int = 40, low: float = 0.0, high: float | None = None
) -> str:
    """One bar a value, with the value behind it.

    Args:
        values: label -> value, at least one.
        width: characters of the longest bar.
        low, high: ends of the scale; high is the largest value if it is None.
    """
    top = max(values.values()) if high is None else high
    span = top - low if top > low else 1.0
    names = max(map(len, values))
    lines = []
    for name, value in values.items():
        length = round(width * min(1.0, max(0.0, (value - low) / span)))
        lines.append(f"{name:<{names}} |{'#' * length:<{width}}| {value:.4g}")
    return "\n".join(lines)


def plot(
    series: Mapping[str, Sequence[tuple[float, float]]], width: int = 64, height: int = 14
) -> str:
    """Points of several series in one frame, a mark for each series.

    Args:
        series: label -> (x, y) points; at least one point in all.
        width, height: of the frame inside its axes, at least 2.
    """
    points = [point for one in series.values() for point in one]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    bottom, top = min(y for _, y in points), max(y for _, y in points)
    across, up = right - left or 1.0, top - bottom or 1.0
    grid = [[" "] * width for _ in range(height)]
    marks = [MARKS[index % len(MARKS)] for index in range(len(series))]
    for mark, one in zip(marks, series.values(), strict=True):
        for x, y in one:
            column = round((x - left) / across * (width - 1))
            grid[height - 1 - round((y - bottom) / up * (height - 1))][column] = mark
    names = [f"{top:.4g}", f"{bottom:.4g}"]
    margin = max(map(len, names))
    lines = []
    for index, row in enumerate(grid):
        name = names[0] if index == 0 else names[1] if index == height - 1 else ""
        lines.append(f"{name:>{margin}} |{''.join(row)}")
    lines.append(f"{'':>{margin}} +{'-' * width}")
    ends = f"{left:.4g}"
    lines.append(f"{'':>{margin}}  {ends}{f'{right:.4g}':>{width - len(ends)}}")
    legend = "   ".join(f"{mark} {name}" for mark, name in zip(marks, series, strict=True))
    return "\n".join([*lines, f"{'':>{margin}}  {legend}"])
