"""Sentences of the report: limits and the draft of a write-up, with the numbers of the runs."""

from __future__ import annotations

from evals.compare import Comparison, Test
from evals.report.control import leakage_words
from evals.report.runs import LEARNED_GATES, PLAIN, RL_GATES, Runs, without_words
from evals.report.sections import RoutingFindings

ALPHA = 0.05


def limits(runs: Runs, comparison: Comparison | None) -> list[str]:
    """What these runs cannot show, as far as their files tell."""
    found = []
    for is_mhc, name in ((False, PLAIN), (True, "mHC")):
        own = [run for run in runs.trainings if run.is_mhc == is_mhc]
        seeds = {run.config.get("seed") for run in own}
        if own:
            found.append(
                f"{name}: {len(own)} training run{'s' if len(own) > 1 else ''}, "
                f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}; how far runs scatter is not in "
                "the intervals, which are of the problems only."
            )
    for run in runs.trainings:
        tokens = run.config["steps"] * run.config["total_batch_tokens"]
        found.append(f"{run.label} saw {tokens:,} tokens.")
    for test in comparison.tests if comparison else []:
        if test.detectable is not None and test.metric in ("strict", "acc", "acc_norm"):
            found.append(
                f"{test.task} {test.metric}, {test.second} against {test.first}: a difference "
                f"below {100 * test.detectable:.1f} points would often not be found."
            )
    for one in runs.evaluations:
        for task, entry in one.results["tasks"].items():
            if entry.get("malformed"):
                found.append(f"{one.label}, {task}: {len(entry['malformed'])} malformed rows.")
            if entry.get("too_long"):
                found.append(
                    f"{one.label}, {task}: {entry['too_long']} of {entry['n']} problems do not fit "
                    "the context and count as wrong."
                )
    return found or ["The runs' files tell of none."]


def draft(runs: Runs, comparison: Comparison | None, routing: RoutingFindings | None) -> list[str]:
    """Paragraphs to start a write-up from."""
    parts = ["**Set-up.** " + _set_up(runs)]
    if comparison is not None:
        parts.append("**Results.** " + " ".join(map(_sentence, _main_tests(comparison))))
    if routing is not None:
        parts.append(
            f"**Routing.** Over {routing.texts} texts the mixing is farthest from the identity in "
            f"{', '.join(routing.strongest())} (of {routing.largest:.2f} at most). The streams' "
            f"mean cosine is {routing.similarity:.3f}, H_res moved by up to {routing.drift:.3f} "
            f"since the start, the composite gain is {routing.gain:.4f}. Of the kinds of tokens, "
            f"'{routing.kind[0]}' is mixed most (mean distance {routing.kind[1]:.3f})."
        )
    for found in runs.controls.values():
        words = leakage_words(found)
        parts.append(f"**Control.** Of {found['problems']['n']} answers each: {words}")
    if runs.tunings:
        parts.append("**Gates.** " + _gates(runs))
    return parts


def _set_up(runs: Runs) -> str:
    sentences = []
    for run in runs.trainings:
        model = run.config["model"]
        streams = f", {model['mhc']['n_streams']} streams" if run.is_mhc else ""
        bpb = run.last("val_bpb")
        sentences.append(
            f"{run.label}: {model['n_layers']} layers of width {model['d_model']}{streams}, "
            f"{run.config['steps']} steps of {run.config['total_batch_tokens']:,} tokens, seed "
            f"{run.config['seed']}"
            + ("." if bpb is None else f", held-out bits per byte {bpb:.4f}.")
        )
    for one in runs.evaluations[:1]:
        versions = one.results["versions"]
        sentences.append(
            f"Evaluated with torch {versions['torch']} on {one.results['machine']['processor']}, "
            "greedily, each accuracy with its Wilson interval, differences paired by problem."
        )
    return " ".join(sentences)


def _main_tests(comparison: Comparison) -> list[Test]:
    """mHC against the baseline and RL against the learned gates, on each task's first metric."""
    wanted = {(PLAIN, LEARNED_GATES), (LEARNED_GATES, RL_GATES)}
    metrics = ("strict", "acc", "acc_norm", "bits per byte")
    return [
        test
        for test in comparison.tests
        if (without_words(test.first), without_words(test.second)) in wanted
        and test.metric in metrics
    ]


def _sentence(test: Test) -> str:
    low, high = test.difference.interval
    if test.mcnemar is None:
        return (
            f"{test.second} needs {test.difference.value:+.4f} bits per byte against {test.first} "
            f"[{low:+.4f}, {high:+.4f}]."
        )
    verdict = "a difference" if test.holm_p < ALPHA else "no difference that can be told apart"
    return (
        f"{test.task} {test.metric}: {test.second} against {test.first} "
        f"{100 * test.difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], "
        f"p = {test.mcnemar.p_value:.3g} ({test.holm_p:.3g} corrected): {verdict}."
    )


def _gates(runs: Runs) -> str:
    tuning = runs.tunings[-1]
    text = f"PPO tuned {tuning.config['action_space'].replace('_', ' ')} gates"
    one = runs.evaluation(RL_GATES)
    learned = runs.evaluation(LEARNED_GATES)
    if one is None or learned is None:
        return text + "; the policy was not evaluated."
    means = one.results["gates"]["mean"]
    text += (
        f"; on the evaluated problems they are {min(means):.3f} to {max(means):.3f} on average, "
        f"the learned ones {min(learned.results['gates']['mean']):.3f} to "
        f"{max(learned.results['gates']['mean']):.3f}."
    )
    bound = tuning.summary.get("best gate for each problem")
    if bound is not None and "learned" in tuning.summary:
        text += (
            f" The best of the swept gates for each training problem solves "
            f"{100 * bound['accuracy']:.1f} %, the learned gates "
            f"{100 * tuning.summary['learned']['accuracy']:.1f} %: that is the room there was."
        )
    return text
