"""The files of an evaluation: results.json and samples.jsonl, and its Markdown table."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evals.gsm8k import Accuracy, GSM8KResult
from evals.tasks import EXTRACTION_VERSION, PROMPT_VERSION
from mhc_model.errors import DataError
from mhc_model.files import replace_text

RESULTS, SAMPLES = "results.json", "samples.jsonl"
EXTRACTIONS = ("strict", "flexible")
_PACKAGES = ("mhc-gates", "torch", "tiktoken", "numpy", "safetensors")


def task_results(result: GSM8KResult) -> dict[str, Any]:
    """The entry of one generative task in results.json."""
    return {
        "n": len(result.samples),
        "n_shot": result.n_shot,
        **{name: _accuracy(getattr(result, name)) for name in EXTRACTIONS},
        "prompt_version": PROMPT_VERSION,
        "extraction_version": EXTRACTION_VERSION,
        "prompts_sha256": result.prompts_sha256,
        "max_tokens": result.max_tokens,
        "max_tokens_cut": result.cut,
        "too_long": result.too_long,
        "generated_tokens": result.tokens,
        "seconds": round(result.seconds, 3),
        "tokens_per_s": round(result.tokens_per_s, 1),
    }


def _accuracy(accuracy: Accuracy) -> dict[str, Any]:
    return {
        "accuracy": accuracy.value,
        "correct": accuracy.correct,
        "stderr": accuracy.stderr,
        "wilson_95": list(accuracy.wilson_95),
    }


def sample_rows(task: str, result: GSM8KResult) -> list[dict[str, Any]]:
    """The lines of samples.jsonl."""
    return [{"task": task, **asdict(sample)} for sample in result.samples]


def package_versions() -> dict[str, str]:
    """Versions of what decides the numbers; a package that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # the project itself, run from a checkout
            continue
    return versions


def write_results(
    directory: Path, results: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]
) -> None:
    """Writes both files, each whole or not at all; results.json goes last: then all is there."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    replace_text(directory / SAMPLES, "".join(lines))
    replace_text(directory / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


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


def read_samples(path: Path, task: str) -> list[dict[str, Any]]:
    """The samples of one task that belong to a results.json.

    Raises:
        DataError: if the file is missing or malformed.
    """
    path = (path if path.is_dir() else path.parent) / SAMPLES
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row["task"] == task]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"samples {path} cannot be read: {type(error).__name__} {error}") from None


def percent(entry: Mapping[str, Any]) -> str:
    """`61.2 % [56.3, 65.9]` of a strict or flexible entry."""
    low, high = entry["wilson_95"]
    return f"{100 * entry['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


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
    """One run's tasks as Markdown, with a note where the context was too short."""
    rows, notes = [], []
    for name, task in results["tasks"].items():
        if "bits_per_byte" in task:
            rows.append([name, "bits per byte", f"{task['bits_per_byte']:.4f}", ""])
            continue
        for extraction in EXTRACTIONS:
            rows.append([name, extraction, percent(task[extraction]), str(task["n"])])
        if task["too_long"] or task["max_tokens_cut"]:
            notes.append(
                f"{name}: {task['too_long']} of {task['n']} prompts do not fit the context and "
                f"count as wrong; {task['max_tokens_cut']} had room for fewer than "
                f"{task['max_tokens']} tokens"
            )
    table = markdown(["task", "metric", "value [Wilson 95 %]", "n"], rows)
    return "\n\n".join([table, *notes])
