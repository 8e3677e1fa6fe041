"""One report of trainings, evaluations and RL: what it says, in order.

Every number comes from the runs' own files.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from evals.compare import LEGEND, Comparison, compare, tests_rows
from evals.paired import TOKENS
from evals.report.choices import choices_section
from evals.report.control import control_section
from evals.report.document import Document
from evals.report.pictures import training_curves
from evals.report.runs import LEARNED_GATES, PLAIN, RL_GATES, Evaluation, Runs, find_runs
from evals.report.sections import fixed_gate_picture, routing_section, tuning_section
from evals.report.settings import HTML, MARKDOWN, PICTURES, ReportSettings
from evals.report.words import draft, limits
from evals.results import accuracies, latency_table, mean_tokens, memory_table, percent
from evals.settings import BPB, LATENCY, MEMORY, EvalSettings
from mhc_model.errors import ConfigError
from mhc_model.files import replace_text
from mhc_model.settings import Settings

NOT_MEASURED = "not measured"
# Rows of the first table: what they are called, the task, and the metric.
HEADLINES = (
    ("validation bits per byte", None, "val_bpb"),
    ("GSM8K, 0-shot, strict", "gsm8k", "strict"),
    ("GSM8K, 0-shot, flexible", "gsm8k", "flexible"),
    ("GSM8K, 0-shot, tokens per answer", "gsm8k", TOKENS),
    ("GSM8K, 8-shot, strict", "gsm8k_8shot", "strict"),
    ("HellaSwag, acc_norm", "hellaswag", "acc_norm"),
    ("ARC-Easy, acc", "arc_easy", "acc"),
    ("bits per byte of the evaluated text", "bpb", "bits_per_byte"),
    ("latency: decode step, p50 ms", LATENCY, "decode_ms"),
    ("latency: prefill, p50 ms", LATENCY, "prefill_ms"),
    ("peak memory, MB", MEMORY, "peak"),
)


def make_report(settings: ReportSettings) -> Document:
    """Writes the files and returns the document.

    Raises:
        MHCError: if the runs cannot be read or are not there.
    """
    runs = find_runs(settings.runs)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    document = Document(settings.title, out / PICTURES)
    token_cost = settings.token_cost
    if token_cost is None:
        token_cost = next((one.config.get("token_cost") for one in runs.tunings[::-1]), None)
    comparison, refusal = _compare(runs, token_cost)
    document.heading("Results")
    _headline_table(document, runs)
    _tests(document, comparison, refusal)
    choices_section(document, runs, token_cost)
    _sinkhorn(document, runs)
    _measured(document, runs)
    if runs.trainings:
        document.heading("Training")
        losses = {run.label: run.curve("loss") for run in runs.trainings}
        bits = {run.label: run.curve("val_bpb") for run in runs.trainings}
        document.picture(training_curves(losses, bits))
    routing = routing_section(document, runs, settings.texts, settings.device)
    control_section(document, runs)
    tuning_section(document, runs)
    fixed_gate_picture(document, runs)
    document.heading("Limits")
    document.items(limits(runs, comparison))
    document.heading("Commands")
    document.code("\n".join(_commands(runs, settings)))
    document.heading("Draft of a write-up")
    for paragraph in draft(runs, comparison, routing):
        document.paragraph(paragraph)
    replace_text(out / MARKDOWN, document.to_markdown())
    replace_text(out / HTML, document.to_html())
    return document


def _main_columns(runs: Runs) -> list[Evaluation]:
    found = [runs.evaluation(label) for label in (PLAIN, LEARNED_GATES, RL_GATES)]
    return [one for one in found if one is not None]


def _compare(runs: Runs, token_cost: float | None) -> tuple[Comparison | None, str]:
    columns = _main_columns(runs)
    if not columns:
        return None, "no evaluation among the runs"
    paths, labels = [one.path for one in columns], [one.label for one in columns]
    try:
        return compare(paths, labels, token_cost=token_cost or None), ""
    except ConfigError as error:
        return None, str(error)


def _headline_table(document: Document, runs: Runs) -> None:
    """A column a model and gates; all are there, whether or not they were measured."""
    columns = (PLAIN, LEARNED_GATES, RL_GATES)
    rows = [
        [words, *(_value(runs, label, task, metric) for label in columns)]
        for words, task, metric in HEADLINES
    ]
    document.table(["", *columns], rows)
    document.paragraph(
        "Accuracies with Wilson 95 % intervals. Validation bits per byte are of the training run "
        "with learned gates; latency is at the largest batch that was measured."
    )


def _value(runs: Runs, label: str, task: str | None, metric: str) -> str:
    if task is None:
        if label == RL_GATES:
            return "as learned gates"
        own = [one.last(metric) for one in runs.trainings if one.is_mhc == (label != PLAIN)]
        values = [value for value in own if value is not None]
        return f"{values[-1]:.4f}" if values else NOT_MEASURED
    one = runs.evaluation(label)
    if one is None:
        return NOT_MEASURED
    if task in (LATENCY, MEMORY):
        return _measurement(runs, one, task, metric)
    entry = runs.task(label, task)
    if entry is None:
        return NOT_MEASURED
    if metric == TOKENS:
        return f"{mean_tokens(entry):.1f}"
    return f"{entry[metric]:.4f}" if task == BPB else percent(entry[metric])


def _measurement(runs: Runs, one: Evaluation, task: str, metric: str) -> str:
    """Latency or memory of this evaluation's checkpoint, from whichever run measured it."""
    checkpoint = one.results["checkpoint"]["path"]
    for other in (one, *runs.evaluations):
        found = other.results["measured"].get(task)
        if found is None:
            continue
        if task == MEMORY and checkpoint in found:
            figures = found[checkpoint]
            return f"{figures.get('peak_cuda_bytes', figures['peak_rss_bytes']) / 1e6:.0f}"
        if task == LATENCY:
            rows = [row for row in found["rows"] if row["model"] == checkpoint]
            if rows:
                return f"{rows[-1][metric]['p50']:.2f} (batch {rows[-1]['batch']})"
    return NOT_MEASURED


def _tests(document: Document, comparison: Comparison | None, refusal: str) -> None:
    document.heading("Tests")
    if comparison is None:
        document.paragraph(f"The evaluations are not compared: {refusal}.")
        return
    if not comparison.tests:
        document.paragraph("There is one evaluation: nothing to test.")
        return
    header, rows = tests_rows(comparison.tests)
    document.table(header, rows)
    document.paragraph(LEGEND)
    for note in comparison.unpaired:
        document.paragraph(note + ".")


def _sinkhorn(document: Document, runs: Runs) -> None:
    one = next((e for e in runs.evaluations if e.results.get("sinkhorn")), None)
    if one is None:
        return
    document.heading("Sinkhorn iterations at inference")
    tasks = one.results["tasks"]
    names = [
        (task, metric)
        for task, entry in tasks.items()
        for metric in (*accuracies(entry), "bits_per_byte")
        if metric in entry
    ]

    def cell(value: Any) -> str:
        return f"{value:.4f}" if isinstance(value, float) else percent(value)

    rows = [["as trained", "", *(cell(tasks[task][metric]) for task, metric in names)]]
    for iterations, entry in one.results["sinkhorn"].items():
        scores = [cell(entry["tasks"][task][metric]) for task, metric in names]
        rows.append([iterations, f"{entry['row_error']:.1e}", *scores])
    document.table(["iterations", "row error", *(f"{t} {m}" for t, m in names)], rows)
    document.paragraph(
        f"{one.label}: the projection of H_res replaced at inference, the weights as trained. Row "
        "error: the worst distance of a row sum of H_res from one."
    )


def _measured(document: Document, runs: Runs) -> None:
    for task, title, table in (
        (LATENCY, "Latency", latency_table),
        (MEMORY, "Memory", memory_table),
    ):
        found = [e for e in runs.evaluations if task in e.results["measured"]]
        if not found:
            continue
        document.heading(title)
        for one in found:
            machine = one.results["machine"]
            document.markdown_table(table(one.results["measured"][task]))
            document.paragraph(
                f"Measured on {machine['processor']} ({machine['cores']} cores, "
                f"{machine['threads']} threads, {machine['device']})."
            )


def _commands(runs: Runs, settings: ReportSettings) -> list[str]:
    """The commands that made these runs, from their own configurations."""
    configured = [("train", run) for run in runs.trainings] + [("rl", run) for run in runs.tunings]
    lines = [
        shlex.join(["python", "-m", room, "--config", str(run.path / "config.yaml")])
        for room, run in configured
    ]
    for one in runs.evaluations:
        own = EvalSettings.model_validate(one.results["settings"])
        lines.append(shlex.join(["python", "-m", "evals", *_flags(own)]))
    for directory in runs.controls:
        own_config = str(directory / "config.yaml")
        lines.append(shlex.join(["python", "-m", "evals.control", "--config", own_config]))
    own_line = ["python", "-m", "evals.report", *settings.runs, "--out", settings.out]
    return [*lines, shlex.join(own_line)]


def _flags(settings: Settings, prefix: str = "") -> list[str]:
    """The flags of all fields that are not at their default."""
    flags: list[str] = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        flag = f"--{prefix}{name.replace('_', '-')}"
        if isinstance(value, Settings):
            flags += _flags(value, f"{prefix}{name.replace('_', '-')}.")
        elif field.is_required() or value != field.default:
            parts = value if isinstance(value, tuple) else (value,)
            flags += [flag, *(str(part) for part in parts)]
    return flags
