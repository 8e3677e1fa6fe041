"""The files of an evaluation, read and written, and its Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.store import SAMPLES
from mhc_model.errors import DataError
from mhc_model.files import read_own_rows, replace_text

RESULTS = "results.json"
ACCURACIES = ("strict", "flexible", "acc", "acc_norm")  # of all tasks, in the order of tables


def write_results(directory: Path, results: Mapping[str, Any]) -> None:
    """Writes results.json, whole or not at all: where it is, all samples are."""
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    replace_text(directory / RESULTS, text)


def read_results(path: Path) -> dict[str, Any]:
    """Reads a results.json, or the one of a directory.

    Raises:
        DataError: if it is missing or not what `write_results` wrote.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"results {path} cannot be read: {error}") from None
    if not isinstance(results, dict) or not isinstance(results.get("tasks"), dict):
        raise DataError(f"{path} is no results.json of python -m evals: it has no 'tasks'")
    return results


def read_measured(directory: Path) -> dict[str, Any]:
    """The timings of an earlier, whole run in this directory; empty if there was none."""
    if not (directory / RESULTS).exists():
        return {}
    return read_results(directory).get("measured", {})


def read_samples(path: Path, task: str) -> list[dict[str, Any]]:
    """The samples of one task that belong to a results.json.

    Raises:
        DataError: if the file is missing or malformed.
    """
    path = (path if path.is_dir() else path.parent) / SAMPLES
    try:
        rows = read_own_rows(path)
        return [row for row in rows if row["task"] == task]
    except (OSError, KeyError, TypeError) as error:
        raise DataError(f"samples {path} cannot be read: {type(error).__name__} {error}") from None


def accuracies(entry: Mapping[str, Any]) -> list[str]:
    """Names of the accuracies that a task's entry has."""
    return [name for name in ACCURACIES if name in entry]


def percent(entry: Mapping[str, Any]) -> str:
    """`61.2 % [56.3, 65.9]` of one accuracy."""
    low, high = entry["wilson_95"]
    return f"{100 * entry['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def interval(entry: Mapping[str, Any], digits: int = 2) -> str:
    """`23.10 [21.80, 24.40]` of a mean."""
    mean = f"{entry['mean']:.{digits}f}"
    if entry["bootstrap_95"] is None:
        return mean
    low, high = entry["bootstrap_95"]
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def mean_tokens(entry: Mapping[str, Any]) -> float | None:
    """Generated tokens per answer of a task's entry; None for tasks that generate nothing."""
    return entry["generated_tokens"] / entry["n"] if "generated_tokens" in entry else None


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with padded columns, the first one left-aligned, the others right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join(padded) + " |")
    return "\n".join(lines)


def results_table(results: Mapping[str, Any]) -> str:
    """One run's results as Markdown tables, with notes on what was left out or cut."""
    rows, notes = [], []
    for name, task in results["tasks"].items():
        if "bits_per_byte" in task:
            rows.append([name, "bits per byte", f"{task['bits_per_byte']:.4f}", ""])
        for metric in accuracies(task):
            rows.append([name, metric, percent(task[metric]), str(task["n"])])
        tokens = mean_tokens(task)
        if tokens is not None:
            rows.append([name, "tokens per answer", f"{tokens:.2f}", str(task["n"])])
        notes += _notes(name, task)
    parts = [markdown(["task", "metric", "value [Wilson 95 %]", "n"], rows)] if rows else []
    parts += notes
    if results.get("sinkhorn"):
        parts.append(_sinkhorn_table(results))
    measured = results["measured"]
    if "latency" in measured:
        parts.append(latency_table(measured["latency"]))
    if "memory" in measured:
        parts.append(memory_table(measured["memory"]))
    return "\n\n".join(parts)


def _notes(name: str, task: Mapping[str, Any]) -> list[str]:
    notes = []
    if task.get("malformed"):
        notes.append(f"{name}: {len(task['malformed'])} malformed rows left out")
    if "max_tokens" in task and (task["too_long"] or task["max_tokens_cut"]):
        notes.append(
            f"{name}: {task['too_long']} of {task['n']} prompts do not fit the context and "
            f"count as wrong; {task['max_tokens_cut']} had room for fewer than "
            f"{task['max_tokens']} tokens"
        )
    elif task.get("too_long") or task.get("cut"):
        notes.append(
            f"{name}: {task['too_long']} of {task['n']} choices do not fit the context and "
            f"count as wrong; {task['cut']} contexts lost their start"
        )
    return notes


def _sinkhorn_table(results: Mapping[str, Any]) -> str:
    """Scores by the number of Sinkhorn iterations at inference, those of training first."""
    tasks = results["tasks"]
    names = [
        (task, metric)
        for task, entry in tasks.items()
        for metric in (*accuracies(entry), "bits_per_byte")
        if metric in entry
    ]
    rows = [["as trained", "", "", *(_score(tasks[task][metric]) for task, metric in names)]]
    for iterations, entry in results["sinkhorn"].items():
        scores = [_score(entry["tasks"][task][metric]) for task, metric in names]
        errors = [f"{entry[name]:.1e}" for name in ("row_error", "column_error")]
        rows.append([f"{iterations} iterations", *errors, *scores])
    header = ["H_res by", "row error", "column error", *(f"{t} {m}" for t, m in names)]
    return markdown(header, rows)


def _score(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{100 * value['accuracy']:.1f} %"


def latency_table(latency: Mapping[str, Any]) -> str:
    """p50 / p95 of every model and batch."""
    rows = [
        [
            row["model"],
            str(row["batch"]),
            f"{row['prefill_ms']['p50']:.2f} / {row['prefill_ms']['p95']:.2f}",
            f"{row['decode_ms']['p50']:.2f} / {row['decode_ms']['p95']:.2f}",
            f"{row['decode_tokens_per_s']:.0f}",
        ]
        for row in latency["rows"]
    ]
    header = ["model", "batch", "prefill ms p50 / p95", "decode ms p50 / p95", "tokens/s"]
    note = (
        f"{latency['prompt_tokens']} prompt and {latency['new_tokens']} new tokens a request, "
        f"{latency['repeats']} repeats, models in turn; a decode step gives every row one token."
    )
    return markdown(header, rows) + "\n\n" + note


def memory_table(memory: Mapping[str, Any]) -> str:
    """Peak memory of every model, in MB of 10^6 bytes."""
    rows = []
    for path, figures in memory.items():
        peak = figures.get("peak_cuda_bytes", figures["peak_rss_bytes"])
        kind = "CUDA" if "peak_cuda_bytes" in figures else "RSS"
        before = "" if kind == "CUDA" else f"{figures['rss_before_loading_bytes'] / 1e6:.0f}"
        weights = f"{figures['weights_bytes'] / 1e6:.1f}"
        rows.append([path, str(figures["batch"]), kind, weights, before, f"{peak / 1e6:.0f}"])
    return markdown(["model", "batch", "memory", "weights MB", "before MB", "peak MB"], rows)
