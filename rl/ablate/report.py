"""The files of an ablation: results.json, ablation.md and .html, pictures as SVG and PNG."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from evals.compare import LEGEND, tests_rows
from evals.report import Document, pictures
from mhc_model.files import read_lines, replace_json, replace_text
from mhc_model.gates import SUBLAYERS, gate_names
from rl.ablate.arms import LEARNED, Arm, fixed_name
from rl.ablate.findings import Findings
from rl.ablate.study import Study

RESULTS, REPORT = "results.json", "ablation"


def write_report(findings: Findings) -> Path:
    """Writes everything beside the arms; gives the path of the Markdown file."""
    study = findings.study
    replace_json(study.directory / RESULTS, findings.as_json())
    document = Document(f"Gates of {study.config.name}", study.directory / "pictures")
    config = study.config
    document.paragraph(
        f"Checkpoint {study.checkpoint.content_hash[:12]}. Arms learn on {len(study.training)} "
        f"training problems of `{config.data}`, each with {config.budget} rollouts "
        f"({config.iterations} rounds of {config.rollouts}), and answer {len(study.held_out)} "
        f"held-out problems, greedy, with at most {config.max_tokens} tokens; {config.reward} "
        f"extraction. Seeds: {', '.join(map(str, config.seeds))}."
    )
    document.heading("Accuracy")
    document.table(*findings.arms_table())
    document.heading("Tests")
    document.table(*tests_rows(findings.tests))
    document.paragraph(LEGEND)
    document.heading("Gates")
    for picture in _pictures(findings):
        document.picture(picture)
    path = study.directory / f"{REPORT}.md"
    replace_text(path, document.to_markdown())
    replace_text(path.with_suffix(".html"), document.to_html())
    return path


def _pictures(findings: Findings) -> list[pictures.Picture]:
    study = findings.study
    names = gate_names(study.checkpoint.model.config.n_layers)
    learned = study.checkpoint.model.learned_gates().detach().tolist()
    made = [_fixed(findings)]
    for name in findings.names:
        result = findings.of(name)[0]
        if result.arm.seed is None:
            continue
        slug = name.replace(":", "-")
        picture = pictures.gate_distribution(result.gates, names, learned)
        made.append(
            replace(
                picture,
                name=f"gates-{slug}",
                title=f"Gates of {result.arm.label}",
                caption="Gates on the held-out problems: median, quartiles, extremes; diamonds are "
                "the learned gates.",
            )
        )
        tried = _tried(study, result.arm)
        if tried is not None:
            gates, solved, own = tried
            picture = pictures.gate_against_accuracy(gates, solved, own)
            made.append(
                replace(
                    picture,
                    name=f"accuracy-{slug}",
                    title=f"Each gate against accuracy, {result.arm.label}",
                    caption="Training rollouts by the gate of one layer or sublayer (the others as "
                    "tried beside it), with Wilson 95 % intervals; dotted: the mean of all.",
                )
            )
    return made


def _fixed(findings: Findings) -> pictures.Picture:
    entries = {
        gate: picture_entry(findings, fixed_name(gate))
        for gate in sorted(findings.study.config.grid)
    }
    others = {
        name: picture_entry(findings, name)
        for name in findings.names
        if name == LEARNED or name.startswith("ppo")
    }
    return pictures.fixed_gates(entries, others)


def picture_entry(findings: Findings, name: str) -> dict[str, object]:
    """Accuracy of an arm; seeds answer the same problems, so only a single one has an interval
    that counts answers."""
    results = findings.of(name)
    accuracy = float(np.mean([result.accuracy for result in results]))
    if len(results) > 1:
        return {"accuracy": accuracy}
    solved = results[0].solved
    low, high = pictures.wilson_interval(int(solved.sum()), len(solved))
    return {"accuracy": accuracy, "wilson_95": [low, high]}


def _tried(study: Study, arm: Arm) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """Gates and rewards of an arm's training rollouts, and names of the gates it can tell apart."""
    path = study.rollouts(arm)
    if not path.exists():
        return None
    rows = [json.loads(line) for line in read_lines(path)]
    gates = np.array([row["gates"] for row in rows])
    solved = np.array([row["reward"] for row in rows])
    n_layers = study.checkpoint.model.config.n_layers
    if arm.space == "per_sublayer":
        return gates, solved, gate_names(n_layers)
    every = len(SUBLAYERS)
    if arm.space == "per_layer":
        return gates[:, ::every], solved, [f"layer{index}" for index in range(n_layers)]
    return gates[:, :1], solved, ["all"]
