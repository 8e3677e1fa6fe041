"""Every choice of gates and words on the same problems: accuracy, tokens, reward."""

from __future__ import annotations

from evals.paired import REWARD, TOKENS, digits, reward
from evals.report.document import Document
from evals.report.runs import Evaluation, Runs
from evals.results import interval, percent, read_samples
from evals.settings import N_SHOT
from evals.statistics import mean_entry

TASK = next(iter(N_SHOT))


def choices_section(document: Document, runs: Runs, token_cost: float | None) -> None:
    """A row an evaluation of generated answers; nothing where there are fewer than two."""
    shown = _on_the_same_problems(runs.evaluations)
    if len(shown) < 2:
        return
    document.heading("Choices of gates")
    metrics = (TOKENS, REWARD) if token_cost else (TOKENS,)
    rows = []
    for one in shown:
        samples = read_samples(one.path, TASK)
        values = {TOKENS: [float(row["tokens"]) for row in samples]}
        if token_cost:
            values[REWARD] = [reward(row["strict"], row["tokens"], token_cost) for row in samples]
        cells = [interval(mean_entry(values[metric]), digits(metric)) for metric in metrics]
        rows.append([one.label, percent(one.results["tasks"][TASK]["strict"]), *cells])
    document.table(["", f"{TASK}, strict", *metrics], rows)
    n = shown[0].results["tasks"][TASK]["n"]
    words = f"The same {n} problems in every row, 95 % intervals (Wilson, bootstrap)."
    if token_cost:
        words += f" Reward of an answer: right - {token_cost:g} * generated tokens."
    if any("words" in one.results["tasks"][TASK] for one in shown):
        words += " Words in brackets stood after every question."
    document.paragraph(words)


def _on_the_same_problems(evaluations: list[Evaluation]) -> list[Evaluation]:
    """Those with the problems and the limit of the first one."""
    found = [one for one in evaluations if TASK in one.results["tasks"]]
    return [one for one in found if _problems(one) == _problems(found[0])]


def _problems(one: Evaluation) -> tuple[str, int]:
    entry = one.results["tasks"][TASK]
    return entry.get("problems_sha256", entry["prompts_sha256"]), entry["max_tokens"]
