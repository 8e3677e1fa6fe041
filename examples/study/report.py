"""study.md and study.json: what was run, what came out, and what that shows or does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from examples.study.calibrate import read_calibration
from examples.study.config import StudyConfig
from examples.study.findings import (
    BUDGETS,
    TESTED,
    All,
    Comparison,
    compare_all,
    interval,
    number,
    p_words,
)
from examples.study.gates import (
    MODELS,
    Ablations,
    PolicyGain,
    arms_table,
    gains_table,
    level_words,
    policy_gains,
    read_gates,
)
from examples.study.pictures import curves, dots, rewards
from examples.study.results import ACCURACY, METRICS, read_all
from examples.study.seeds import seed_difference
from mhc_model.files import replace_json, replace_text

REPORT, FIGURES = "study.md", "study.json"
LEGEND = (
    "A difference is taken within each seed. In brackets: Student's 95 % interval over the seeds. "
    "p: Student's test; the exact sign test; the exact test over all signs of the differences. "
    "Holm: Student's p, corrected for all tests of the metric in this study. Seeds and problems: "
    "95 % interval where both are resampled (crossed bootstrap)."
)


def write_report(config: StudyConfig, directory: Path, whole: list[int]) -> str:
    """Writes the report of what is there; gives what it shows, in sentences.

    Args:
        config: of the study.
        directory: of the study.
        whole: seeds of which every step is done.

    Raises:
        DataError: if a result is there, but damaged.
    """
    from evals.report import Document

    scores, ablations = read_all(config, directory), read_gates(config, directory)
    comparisons, gains = compare_all(config, scores), policy_gains(ablations)
    calibration = read_calibration(directory)
    document = Document(f"Study {config.name}", directory / "pictures")
    document.paragraph(_what(config, whole))
    sentences = [one.words() for one in comparisons if one.metric in TESTED]
    sentences += [gain.words() for gain in gains]
    document.heading("What is shown, and what is not")
    document.paragraph(_caution(config, whole))
    if outside := _outside(scores):
        document.paragraph(
            f"Outside of 20 to 80 % right, where differences have little room: {outside}."
        )
    document.items(sentences or ["Nothing yet: no two models can be compared."])
    document.heading("Variants")
    for budget, words in BUDGETS.items():
        if any(scores[budget].values()):
            document.paragraph(f"**Trained {words}:**")
            document.table(*_variants_table(scores, budget, calibration))
            document.table(*_comparisons_table([c for c in comparisons if c.budget == budget]))
    document.paragraph(LEGEND)
    if any(seeds for variants in scores.values() for seeds in variants.values()):
        document.picture(curves(config, scores, calibration and calibration["seconds"]))
        document.picture(dots(config, scores))
    _gates(document, ablations, gains)
    if calibration is not None:
        document.heading("Time of a training step")
        document.paragraph(
            "Measured by short trainings in turn; ratios are medians over the rounds, each taken "
            "within its round."
        )
        document.table(*_calibration_table(calibration))
    replace_json(
        directory / FIGURES, _as_json(config, scores, comparisons, gains, ablations, whole)
    )
    replace_text(directory / REPORT, document.to_markdown())
    replace_text((directory / REPORT).with_suffix(".html"), document.to_html())
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _gates(document: Any, ablations: Ablations, gains: list[PolicyGain]) -> None:
    for model, by_seed in ablations.items():
        document.heading(f"Gates of the models {MODELS[model]}")
        first = next(iter(by_seed.values()))
        document.paragraph(
            f"{len(by_seed)} seeds; {first['budget']} rollouts for every arm that learns; "
            f"{first['n']} held-out problems of `{first['data']}`; reward: right, less "
            f"{first['token_cost']:g} a token."
        )
        document.table(*arms_table(by_seed))
        document.table(*gains_table([gain for gain in gains if gain.model == model]))
        if (words := level_words(by_seed)) is not None:
            document.paragraph(words)
    if ablations:
        document.picture(rewards(ablations))


def _what(config: StudyConfig, whole: list[int]) -> str:
    tokens = config.train["steps"] * config.train["total_batch_tokens"]
    return (
        f"{len(whole)} of {len(config.seeds)} seeds are whole ({', '.join(map(str, whole)) or '-'}"
        f"); what others have is in the tables too. Every variant trains "
        f"{config.train['steps']} steps, {tokens:,} tokens; and as long as {config.reference} "
        f"trains. Variants: {'; '.join(map(_variant_words, config.variants.items()))}."
    )


def _variant_words(item: tuple[str, dict[str, Any]]) -> str:
    name, overrides = item
    said = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in overrides.items())
    return f"{name} ({said or 'the training as it is'})"


def _caution(config: StudyConfig, whole: list[int]) -> str:
    seeds = len(whole)
    least = 2 / 2**seeds if seeds else 1.0
    said = (
        f"With {seeds} whole seed{'' if seeds == 1 else 's'} the exact tests cannot give a p below "
        f"{least:.3g}."
    )
    if least > 0.05:
        said += " So they alone cannot reach 0.05; Student's test assumes normal differences."
    return said + (
        " All of this is of one size of model, one kind of data and one choice of learning rates; "
        f"the same rates for all variants may suit one of them better. The time of a training is "
        f"its steps times what a step takes beside {config.reference}'s in the calibration, not a "
        f"clock beside the training."
    )


def _outside(scores: All) -> str:
    """Models that solve hardly any of the problems, or nearly all."""
    found = []
    for budget, variants in scores.items():
        for variant, seeds in variants.items():
            shares = [one.figures[ACCURACY] for one in seeds.values()]
            if shares and not 0.2 <= (mean := sum(shares) / len(shares)) <= 0.8:
                found.append(f"{variant} {BUDGETS[budget]} ({100 * mean:.1f} %)")
    return ", ".join(found)


def _variants_table(
    scores: All, budget: str, calibration: dict[str, Any] | None
) -> tuple[list[str], list[list[str]]]:
    header = ["variant", "steps", "seconds"]
    header += [f"{metric} [Student 95 %]" for metric in METRICS] + [f"{ACCURACY} by seed"]
    rows = []
    for variant, seeds in scores[budget].items():
        if not seeds:
            continue
        steps = max(one.steps for one in seeds.values())
        seconds = "" if calibration is None else f"{steps * calibration['seconds'][variant]:.0f}"
        row = [variant, str(steps), seconds]
        for metric in METRICS:
            values = [one.figures[metric] for one in seeds.values() if metric in one.figures]
            row.append(_mean_words(values, metric))
        shares = [one.figures[ACCURACY] for one in seeds.values()]
        rows.append([*row, " ".join(f"{100 * share:.1f}" for share in shares)])
    return header, rows


def _mean_words(values: list[float], metric: str) -> str:
    if not values:
        return ""
    mean = seed_difference(values)  # of nothing: the mean itself
    bounds = "" if mean.interval is None else f" {interval(mean.interval, metric)}"
    return number(mean.value, metric) + bounds.replace("+", "")


def _comparisons_table(found: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    header = ["metric", "variant minus other", "difference [Student 95 %]", "by seed"]
    header += ["p: Student, sign, signs", "p, Holm", "[seeds and problems 95 %]"]
    rows = []
    for one in found:
        own = one.difference
        bounds = "" if own.interval is None else f" {interval(own.interval, one.metric)}"
        student = "" if own.t_p is None else p_words(own.t_p)
        rows.append(
            [
                one.metric,
                f"{one.variant} minus {one.other}",
                number(own.value, one.metric, True) + bounds,
                " ".join(number(v, one.metric, True).split(" ")[0] for v in own.by_seed),
                f"{student}, {p_words(own.sign_p)}, {p_words(own.permutation_p)}",
                "" if one.holm_p is None else p_words(one.holm_p),
                "" if one.pooled is None else interval(one.pooled, one.metric),
            ]
        )
    return header, rows


def _calibration_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["variant", "ms a step", f"over {found['reference']}", "by round"]
    rows = [
        [
            name,
            f"{1000 * found['seconds'][name]:.0f}",
            f"{ratio:.3f}",
            " ".join(f"{one[name] / one[found['reference']]:.3f}" for one in found["rounds"]),
        ]
        for name, ratio in found["ratios"].items()
    ]
    return header, rows


def _as_json(
    config: StudyConfig,
    scores: All,
    comparisons: list[Comparison],
    gains: list[PolicyGain],
    ablations: Ablations,
    whole: list[int],
) -> dict[str, Any]:
    return {
        "name": config.name,
        "seeds": list(config.seeds),
        "whole_seeds": whole,
        "train_tokens": config.train["steps"] * config.train["total_batch_tokens"],
        "models": {
            budget: {
                variant: {
                    str(seed): {"steps": one.steps, **one.figures} for seed, one in seeds.items()
                }
                for variant, seeds in variants.items()
            }
            for budget, variants in scores.items()
        },
        "comparisons": [one.as_json() for one in comparisons],
        "gates": {
            model: {
                str(seed): {
                    arm: {key: entry[key] for key in ("accuracy", "tokens", "reward")}
                    for arm, entry in one["arms"].items()
                }
                for seed, one in by_seed.items()
            }
            for model, by_seed in ablations.items()
        },
        "policy_gains": [gain.as_json() for gain in gains],
    }
