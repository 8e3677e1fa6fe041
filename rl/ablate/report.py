"""The files of an ablation: results.json, ablation.md and .html, pictures as SVG and PNG."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from evals.paired import LEGEND
from evals.report import Document, pictures
from mhc_model.files import read_own_rows, replace_json, replace_text
from mhc_model.gates import SUBLAYERS, gate_names
from rl.ablate.arms import BEHAVIOUR, LEARNED, PPO, Arm, fixed_name
from rl.ablate.findings import ACCURACY, Findings
from rl.ablate.held_out import HeldOut
from rl.config import RLConfig

RESULTS, REPORT = "results.json", "ablation"
PHASES = ("prompt", "answer")


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
        f"held-out problems, greedy, with at most {config.max_tokens} tokens; {config.extraction} "
        f"extraction. {_reward_words(config)} Seeds: {', '.join(map(str, config.seeds))}."
    )
    for heading, table in findings.tables().items():
        document.heading(heading)
        document.table(*table)
        if heading == "By level":
            document.paragraph(_level_words(findings))
    document.paragraph(LEGEND)
    document.heading("Gates")
    for picture in _pictures(findings):
        document.picture(picture)
    path = study.directory / f"{REPORT}.md"
    replace_text(path, document.to_markdown())
    replace_text(path.with_suffix(".html"), document.to_html())
    return path


def _reward_words(config: RLConfig) -> str:
    worth = {
        "answer": "1 for a right answer",
        "likelihood": "the mean log-likelihood per token of the problem's own answer",
    }[config.reward]
    cost = f", less {config.token_cost:g} for each generated token" if config.token_cost else ""
    return f"Reward: {worth}{cost}."


def _level_words(findings: Findings) -> str:
    """How PPO's arms treat the easiest and the hardest problems."""
    easiest, hardest = (str(level) for level in (min(findings.levels), max(findings.levels)))
    sentences = ["Means over seeds; styles are told from the text (docs/evals.md)."]
    for name in findings.names:
        if findings.of(name)[0].arm.method != PPO:
            continue
        levels = findings.summaries[name]["levels"]
        easy, hard = levels[easiest], levels[hardest]
        sentences.append(
            f"{name} spends {easy['tokens']:.1f} tokens on a problem of level {easiest} and "
            f"{hard['tokens']:.1f} on one of level {hardest}; {100 * easy['styles']['direct']:.0f} "
            f"% and {100 * hard['styles']['direct']:.0f} % of the answers are direct."
        )
    return " ".join(sentences)


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
        shown = _shown(result, names, learned)
        picture = pictures.gate_distribution(*shown)
        made.append(
            replace(
                picture,
                name=f"gates-{slug}",
                title=f"Gates of {result.arm.label}",
                caption="Gates on the held-out problems: median, quartiles, extremes; diamonds are "
                "the learned gates.",
            )
        )
        tried = _tried(findings, result.arm)
        if tried is not None:
            gates, values, own = tried
            what = "solved" if findings.metric == ACCURACY else findings.metric
            picture = pictures.gate_against_accuracy(gates, values, own, what=what)
            made.append(
                replace(
                    picture,
                    name=f"{findings.metric}-{slug}",
                    title=f"Each gate against {findings.metric}, {result.arm.label}",
                    caption="Training rollouts by the gate of one layer or sublayer (the others as "
                    "tried beside it), with 95 % intervals; dotted: the mean of all.",
                )
            )
    return made


def _shown(
    result: HeldOut, names: list[str], learned: list[float]
) -> tuple[np.ndarray, list[str], list[float]]:
    """Gates of an arm on the held-out problems, their names, and the learned ones."""
    if result.answer_gates is None:
        return result.gates, names, learned
    if result.arm.space != "prompt_and_answer":
        both = np.concatenate([result.gates, result.answer_gates], axis=1)
        named = [f"{phase} {name}" for phase in PHASES for name in names]
        return both, named, [*learned, *learned]
    both = np.stack([result.gates[:, 0], result.answer_gates[:, 0]], axis=1)
    return both, list(PHASES), [float(np.mean(learned))] * 2


def _fixed(findings: Findings) -> pictures.Picture:
    entries = {
        gate: picture_entry(findings, fixed_name(gate))
        for gate in sorted(findings.study.config.grid)
    }
    others = {
        name: picture_entry(findings, name)
        for name in findings.names
        if name == LEARNED or name.startswith((PPO, f"{BEHAVIOUR}:"))
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


def _tried(findings: Findings, arm: Arm) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """Gates of an arm's training rollouts, what came of them, and names of the gates it can tell
    apart."""
    study = findings.study
    path = study.rollouts(arm)
    if not path.exists():
        return None
    rows = read_own_rows(path)
    gates = np.array([row["gates"] for row in rows])
    # Rows of earlier versions have a reward, which was a right answer.
    field = "right" if findings.metric == ACCURACY else "reward"
    values = np.array([row.get(field, row["reward"]) for row in rows])
    n_layers = study.checkpoint.model.config.n_layers
    if arm.space == "per_sublayer":
        return gates, values, gate_names(n_layers)
    every = len(SUBLAYERS)
    if arm.space == "per_layer":
        return gates[:, ::every], values, [f"layer{index}" for index in range(n_layers)]
    if arm.space == "prompt_and_answer":
        answers = np.array([row.get("answer_gates") or row["gates"] for row in rows])
        return np.stack([gates[:, 0], answers[:, 0]], axis=1), values, list(PHASES)
    return gates[:, :1], values, ["all"]
