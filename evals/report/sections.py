"""The report's parts that need pictures: routing of the mHC model, and what RL found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evals.report.document import Document
from evals.report.pictures import (
    coefficient_maps,
    fixed_gates,
    gain_over_depth,
    gate_against_accuracy,
    gate_distribution,
    kinds_map,
    mixing_maps,
    sublayer_bars,
)
from evals.report.runs import LEARNED_GATES, RL_GATES, Evaluation, Runs
from evals.report.token_kinds import mixing_by_kind
from evals.results import accuracies, read_samples
from evals.settings import SCORED
from evals.tasks import EXTRACTIONS
from mhc_model.checkpoint import load_checkpoint
from mhc_model.gates import gate_names
from mhc_model.routing import SublayerRouting, watch_routing


@dataclass(frozen=True)
class RoutingFindings:
    """What the routing analysis found, for the write-up.

    Attributes:
        names: of the sublayers.
        distances: of the gated mixing from the identity, by sublayer.
        largest: largest possible distance.
        similarity: mean cosine of the streams over the sublayers.
        gain: composite gain of the whole model.
        drift: largest movement of H_res since the start of training.
        kind: kind of token that is mixed most, and its mean distance.
        texts: number of texts read.
    """

    names: list[str]
    distances: list[float]
    largest: float
    similarity: float
    gain: float
    drift: float
    kind: tuple[str, float]
    texts: int

    def strongest(self, count: int = 3) -> list[str]:
        """The sublayers that mix most, in words."""
        order = sorted(range(len(self.names)), key=lambda i: -self.distances[i])[:count]
        return [f"{self.names[i]} ({self.distances[i]:.2f})" for i in order]


def routing_section(
    document: Document, runs: Runs, texts: int, device: str
) -> RoutingFindings | None:
    """Reads evaluated texts with the mHC model and shows what its streams do."""
    one = runs.evaluation(LEARNED_GATES) or runs.evaluation(RL_GATES)
    if one is None:
        return None
    document.heading("Routing")
    path = Path(one.results["checkpoint"]["path"])
    if not path.exists():
        document.paragraph(f"The checkpoint {path} is not here any more: no routing analysis.")
        return None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_checkpoint(path, device)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    read = _texts(one, texts)
    if not read or tokenizer is None:
        document.paragraph("No evaluated text is there to read: no routing analysis.")
        return None
    with watch_routing(model) as routing, torch.inference_mode():
        for text in read:
            tokens = tokenizer.encode(text, bos=True)[: model.config.max_seq_len]
            model(torch.tensor([tokens], device=device))
    records, names = routing.sublayers(), gate_names(model.config.n_layers)
    largest = math.sqrt(2 * len(records[0].pre))
    table, kinds, counts = mixing_by_kind(model, tokenizer, read)
    document.paragraph(
        f"{one.label}, over {len(read)} of its evaluated texts ({sum(counts):,} tokens)."
    )
    _routing_pictures(document, records, names, largest, routing.composite_gains)
    labels = [f"{kind} ({count:,})" for kind, count in zip(kinds, counts, strict=True)]
    document.picture(kinds_map(table, labels, names, largest))
    by_kind = dict(zip(kinds, table.mean(axis=1).tolist(), strict=True))
    by_kind.pop("separator", None)  # one fixed token, not a kind of text
    kind = max(by_kind, key=by_kind.__getitem__)
    return RoutingFindings(
        names=list(names),
        distances=[float(record.identity_distance) for record in records],
        largest=largest,
        similarity=float(np.mean([float(record.similarity) for record in records])),
        gain=max(routing.composite_gains),
        drift=max(float(record.drift) for record in records),
        kind=(kind, by_kind[kind]),
        texts=len(read),
    )


def _routing_pictures(
    document: Document,
    records: list[SublayerRouting],
    names: list[str],
    largest: float,
    gains: list[float],
) -> None:
    document.picture(mixing_maps(records, names))
    for name, title, caption, label, field, top in (
        (
            "identity_distance",
            "Distance of the mixing from the identity",
            f"Frobenius norm of the gated H_res less the identity, mean over tokens; "
            f"{largest:.2f} at most (dotted).",
            "|H_res' - I|",
            "identity_distance",
            largest,
        ),
        (
            "stream_similarity",
            "Similarity of the streams",
            "Mean cosine of pairs of streams before each sublayer; 1: the streams are one.",
            "cosine",
            "similarity",
            1.0,
        ),
        (
            "drift",
            "Drift from the start of training",
            "Largest movement of an entry of H_res since initialisation.",
            "largest |H_res - start|",
            "drift",
            1.0,
        ),
    ):
        values = {n: float(getattr(r, field)) for n, r in zip(names, records, strict=True)}
        document.picture(sublayer_bars(name, title, caption, label, values, top))
    document.picture(coefficient_maps(records, names))
    document.picture(gain_over_depth(gains))


def _texts(one: Evaluation, count: int) -> list[str]:
    """Texts that were evaluated: prompt and answer, or context and right choice."""
    for task in one.results["tasks"]:
        rows = read_samples(one.path, task)[:count]
        if rows and "prompt" in rows[0]:
            return [row["prompt"] + row["completion"] for row in rows]
        if rows and "choices" in rows[0]:
            return [f"{row['context']} {row['choices'][row['answer']]}" for row in rows]
    return []


def tuning_section(document: Document, runs: Runs) -> None:
    """What gates RL found, and how they go with accuracy."""
    if not runs.tunings:
        return
    document.heading("Gates by RL")
    tuning = runs.tunings[-1]
    rollouts = np.array([row["gates"] for row in tuning.rollouts])
    right = [row.get("right", row["reward"]) for row in tuning.rollouts]
    measured = None not in right  # else nothing was answered, and the reward is all there is
    solved = np.array(right if measured else [row["reward"] for row in tuning.rollouts])
    names = list(gate_names(rollouts.shape[1] // 2))
    rewards = [row["reward"] for row in tuning.rows if "reward" in row]
    document.paragraph(
        f"{len(rollouts):,} rollouts in {len(rewards)} iterations ({tuning.path.name}); mean "
        f"reward {rewards[0]:.3f} in the first and {rewards[-1]:.3f} in the last"
        f"{_ends(tuning.rows, 'accuracy', 'accuracy', 3)}"
        f"{_ends(tuning.rows, 'tokens', 'tokens per answer', 1)}."
    )
    chosen = _chosen_gates(runs)
    learned = runs.evaluation(LEARNED_GATES)
    if chosen is not None and learned is not None:
        document.picture(gate_distribution(chosen, names, learned.results["gates"]["mean"]))
    what = "solved" if measured else "reward"
    if any(row.get("answer_gates") for row in tuning.rollouts):  # one gate a phase
        answers = [row.get("answer_gates") or row["gates"] for row in tuning.rollouts]
        rollouts = np.stack([rollouts[:, 0], np.array(answers)[:, 0]], axis=1)
        names = ["prompt", "answer"]
    document.picture(gate_against_accuracy(rollouts, solved, names, what=what))


def _ends(rows: Sequence[dict[str, Any]], name: str, words: str, digits: int) -> str:
    """A mean of rollouts in the first and the last iteration; nothing where it was not measured."""
    values = [row[name] for row in rows if name in row]
    return f", {words} {values[0]:.{digits}f} and {values[-1]:.{digits}f}" if values else ""


def _chosen_gates(runs: Runs) -> np.ndarray | None:
    one = runs.evaluation(RL_GATES)
    if one is None:
        return None
    for task in SCORED:
        rows = read_samples(one.path, task)
        gates = [row["gates"] for row in rows if row.get("gates") is not None]
        if gates:
            return np.array(gates)
    return None


def fixed_gate_picture(document: Document, runs: Runs) -> None:
    """Accuracy against one fixed gate: from evaluations, or from RL's own sweep."""
    found = _evaluated_gates(runs) or _swept_gates(runs)
    if found is None:
        return
    document.heading("Fixed gates")
    entries, others, words = found
    document.picture(fixed_gates(entries, others))
    document.paragraph(words)


Entries = tuple[dict[float, Any], dict[str, Any], str]


def _evaluated_gates(runs: Runs) -> Entries | None:
    fixed = runs.fixed()
    tasks = [task for task in SCORED if all(task in e.results["tasks"] for e in fixed.values())]
    tasks = [task for task in tasks if task != "bpb"]
    if len(fixed) < 2 or not tasks:
        return None
    task = tasks[0]
    metric = accuracies(next(iter(fixed.values())).results["tasks"][task])[0]
    same = {e.results["tasks"][task]["prompts_sha256"] for e in fixed.values()}
    if len(same) > 1:
        return None
    others = {}
    for label in (LEARNED_GATES, RL_GATES):
        one = runs.evaluation(label)
        entry = None if one is None else one.results["tasks"].get(task)
        if entry is not None and entry["prompts_sha256"] in same:
            others[label] = entry[metric]
    entries = {gate: e.results["tasks"][task][metric] for gate, e in fixed.items()}
    n = next(iter(fixed.values())).results["tasks"][task]["n"]
    return entries, others, f"{task} {metric}, {n} problems."


def _swept_gates(runs: Runs) -> Entries | None:
    for tuning in runs.tunings:
        summary = tuning.summary
        entries = {
            float(label.removeprefix("g=")): entry
            for label, entry in summary.items()
            if label.startswith("g=")
        }
        if len(entries) >= 2:
            others = {k: v for k, v in summary.items() if not k.startswith("g=")}
            n = next(iter(entries.values()))["n"]
            config = tuning.config  # runs of earlier versions call it reward
            extraction = config.get("extraction", config.get("reward", EXTRACTIONS[0]))
            words = (
                f"{n} training problems of {config['data']}, {extraction} extraction; the best "
                f"gate for each problem is the bound of choosing among these."
            )
            return entries, others, words
    return None
