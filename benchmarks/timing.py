"""Times functions in turn, A B C A B C ..., and prints them with their ratios within a round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

WARM_UP = 3  # rounds


class Times(NamedTuple):
    """Milliseconds in each round after the warm-up."""

    wall: list[float]
    cpu: list[float]  # of all threads: what other programs take is not in it, waiting threads are


def interleave(
    functions: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, Times]:
    """Times all functions in turn, round after round."""
    times = {name: Times([], []) for name in functions}
    gc.collect()
    gc.disable()
    try:
        for measured in range(-WARM_UP, rounds):
            for name, function in functions.items():
                synchronize(device)
                begin, cpu = time.perf_counter(), time.process_time()
                function()
                synchronize(device)
                if measured >= 0:
                    times[name].wall.append(1e3 * (time.perf_counter() - begin))
                    times[name].cpu.append(1e3 * (time.process_time() - cpu))
    finally:
        gc.enable()
    return times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarize(times: dict[str, Times]) -> list[dict[str, Any]]:
    """A row of figures for each name: median, minimum and ratios to the plain ones."""
    rows = []
    for name, own in times.items():
        row: dict[str, Any] = {
            "name": name,
            "median_ms": statistics.median(own.wall),
            "min_ms": min(own.wall),
            "median_cpu_ms": statistics.median(own.cpu),
        }
        if "plain" in times:
            plain = times["plain"]
            ratios = ratios_of(own.wall, plain.wall)
            row["ratio"] = statistics.median(ratios)
            row["ratio_quartiles"] = [quantile(ratios, 0.25), quantile(ratios, 0.75)]
            row["cpu_ratio"] = statistics.median(ratios_of(own.cpu, plain.cpu))
        if name.endswith("-compiled") and "plain-compiled" in times:
            compiled = times["plain-compiled"]
            row["ratio_compiled"] = statistics.median(ratios_of(own.wall, compiled.wall))
        rows.append(row | {"times_ms": own.wall, "cpu_times_ms": own.cpu})
    return rows


def ratios_of(series: list[float], reference: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(series, reference, strict=True)]


def quantile(values: list[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def print_times(rows: list[dict[str, Any]]) -> None:
    compiled = any("ratio_compiled" in row for row in rows)
    head = f"{'':20}{'median ms':>11}{'min ms':>11}{'ratio':>8}{'quartiles':>15}"
    head += f"{'cpu ms':>11}{'cpu ratio':>11}"
    print(head + ("  to plain-compiled" if compiled else ""))
    for row in rows:
        line = f"{row['name']:20}{row['median_ms']:11.2f}{row['min_ms']:11.2f}"
        if "ratio" in row:
            low, high = row["ratio_quartiles"]
            line += f"{row['ratio']:8.3f}{low:9.3f}-{high:.3f}"
        line += f"{row['median_cpu_ms']:11.2f}"
        if "ratio" in row:
            line += f"{row['cpu_ratio']:11.3f}"
        if "ratio_compiled" in row:
            line += f"{row['ratio_compiled']:19.3f}"
        if row.get("triton_streams"):
            line += "  (our Triton kernels)"
        print(line)
