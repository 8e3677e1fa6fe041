"""`python -m evals.table A B C`: results of several runs side by side, tested in pairs.

Columns are runs, the first one is what the others are compared with. Runs are comparable only on
the same problems with the same prompts and limits: anything else is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from tyro.conf import Positional

from evals.results import EXTRACTIONS, markdown, percent, read_results, read_samples
from evals.run import BPB
from evals.statistics import mcnemar_exact
from mhc_model.errors import ConfigError, MHCError
from mhc_model.settings import Settings, parse_command_line

# What must agree between runs, and how a disagreement is put.
_COMPARABLE = {
    "n": "number of problems",
    "n_shot": "number of shots",
    "prompt_version": "prompt version",
    "extraction_version": "extraction version",
    "max_tokens": "limit of answer tokens",
    "prompts_sha256": "problems or prompts (sha256)",
}
_COMPARABLE_TEXT = {"bytes": "size of the text", "texts_sha256": "text (sha256)"}


class TableSettings(Settings):
    """Configuration of `python -m evals.table`."""

    results: Positional[tuple[str, ...]] = Field(
        min_length=1,
        description="results.json files or their directories; the first is compared to",
    )
    labels: tuple[str, ...] = Field((), description="names of the columns; none names the files")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    try:
        settings = parse_command_line(
            TableSettings, "evals.table", "Compares results of python -m evals.", argv
        )
        print(side_by_side(settings.results, settings.labels))
    except MHCError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def side_by_side(results: Sequence[str], labels: Sequence[str] = ()) -> str:
    """The Markdown table of several results.

    Args:
        results: results.json files or their directories.
        labels: one a column; empty takes the names of the directories.

    Raises:
        DataError: if a file cannot be read.
        ConfigError: if the runs are not comparable, saying what differs, or the labels do not fit.
    """
    paths = [Path(result) for result in results]
    names = list(labels) or [(p if p.is_dir() else p.parent).name for p in paths]
    if len(names) != len(paths):
        raise ConfigError(f"{len(names)} labels for {len(paths)} results; give one a column")
    runs = [read_results(path) for path in paths]
    rows: list[list[str]] = []
    for task in _common_tasks(runs, names):
        entries = [run["tasks"][task] for run in runs]
        if task == BPB:
            _check_comparable(task, entries, names, _COMPARABLE_TEXT)
            rows.append(["bits per byte", *(f"{entry['bits_per_byte']:.4f}" for entry in entries)])
            continue
        _check_comparable(task, entries, names, _COMPARABLE)
        rows += _accuracy_rows(task, entries, paths)
        rows.append([f"{task} tokens/s", *(f"{entry['tokens_per_s']:.0f}" for entry in entries)])
    return markdown(["", *names], rows)


def _accuracy_rows(task: str, entries: Sequence[Any], paths: Sequence[Path]) -> list[list[str]]:
    """Accuracy and McNemar's p for each extraction; samples are paired by the problem's id."""
    solved = [{row["id"]: row for row in read_samples(path, task)} for path in paths]
    rows = []
    for extraction in EXTRACTIONS:
        rows.append([f"{task} {extraction}", *(percent(entry[extraction]) for entry in entries)])
        if len(paths) == 1:
            continue
        ids = list(solved[0])
        first = [solved[0][i][extraction] for i in ids]
        tests = [mcnemar_exact(first, [run[i][extraction] for i in ids]) for run in solved[1:]]
        rows.append(
            [
                "  McNemar p (won, lost)",
                "",
                *(f"{t.p_value:.3g} ({t.only_second}, {t.only_first})" for t in tests),
            ]
        )
    return rows


def _common_tasks(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    tasks = list(runs[0]["tasks"])
    for run, name in zip(runs, names, strict=True):
        if set(run["tasks"]) != set(tasks):
            raise ConfigError(
                f"tasks differ: {names[0]} has {', '.join(tasks)}, {name} has "
                f"{', '.join(run['tasks'])}; evaluate the same tasks"
            )
    return tasks


def _check_comparable(
    task: str, entries: Sequence[dict[str, Any]], names: Sequence[str], fields: dict[str, str]
) -> None:
    for entry, name in zip(entries[1:], names[1:], strict=True):
        differing = [
            f"{words}: {entries[0].get(field)} and {entry.get(field)}"
            for field, words in fields.items()
            if entry.get(field) != entries[0].get(field)
        ]
        if differing:
            raise ConfigError(
                f"{task} of {names[0]} and of {name} are not comparable; they differ in "
                + "; ".join(differing)
            )


if __name__ == "__main__":
    raise SystemExit(main())
