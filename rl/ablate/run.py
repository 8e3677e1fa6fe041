"""One ablation, from start to end or from where it stopped.

runs/NAME/config.yaml        resolved configuration
runs/NAME/arms/ARM-seedN/    what the arm found (policy/ or gates.json), its held-out samples
runs/NAME/runs/              PPO's runs, as `python -m rl` has them
runs/NAME/results.json       all figures; ablation.md, ablation.html and pictures/ show them
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import ray

from mhc_model.files import replace_json
from mhc_model.running import Heartbeat, doing, on_stop, ray_cluster
from rl.ablate.arms import GRADIENT, GRADIENT_CONTEXTUAL, PPO, Arm
from rl.ablate.config import AblateConfig
from rl.ablate.findings import Findings
from rl.ablate.held_out import HeldOut, evaluate, is_tested
from rl.ablate.report import write_report
from rl.ablate.study import Study
from rl.directory import check_directory, check_same_inputs, locked_run, save_config
from rl.pool import ReplicaPool
from rl.rollouts import Asker
from rl.setup import problems_hash

# What does not change an arm's result: an ablation that goes on may have other values.
FREE_ON_RESUME = (
    *("storage", "checkpoint", "arms", "seeds", "against", "checkpoint_every", "pool", "ray"),
    *("sweep", "sweep_problems"),
)


CHECKPOINT = "checkpoint.json"


def run_ablation(config: AblateConfig, ray_arguments: Mapping[str, Any]) -> Findings:
    """Lets every arm learn, tests all on the held-out problems, writes the report.

    What is there from an earlier start with the same name is kept.

    Args:
        config: of the ablation.
        ray_arguments: keyword arguments of `ray.init`.

    Raises:
        MHCError: if checkpoint, problems or configuration do not allow it, or the name belongs to
            another ablation, or another process is at it.
    """
    with doing("loading the model and reading the problems"):
        study = Study.prepare(config)
    with locked_run(study.directory):
        return _run(study, ray_arguments)


def _run(study: Study, ray_arguments: Mapping[str, Any]) -> Findings:
    config, arms = study.config, study.arms()
    _check_claim(study)
    print(
        f"ablation {config.name} in {study.directory}: {len(arms)} arms, {config.budget} rollouts "
        f"each, {len(study.held_out)} held-out problems",
        flush=True,
    )
    if all(study.is_learned(arm) and is_tested(study, arm) for arm in arms):
        _claim(study)
        results = _test_all(study, arms, None)
    else:
        with ray_cluster(ray, ray_arguments), Heartbeat(f"ablation {config.name}"):
            _claim(study)
            results = _learn_and_test(study, arms, ray_arguments)
    findings = Findings(study, results)
    path = write_report(findings)
    print(f"{findings.text()}\n\nreport: {path}", flush=True)
    return findings


def _learn_and_test(
    study: Study, arms: list[Arm], ray_arguments: Mapping[str, Any]
) -> list[HeldOut]:
    """The arms that learn, those that need no pool of ours first, and the test of all."""
    for arm in [arm for arm in arms if arm.method in (PPO, GRADIENT, GRADIENT_CONTEXTUAL)]:
        _learn(study, arm, arms, ray_arguments)
    pool = ReplicaPool(study.checkpoint.path, study.config.pool)
    try:
        study.asker = Asker(pool, study.checkpoint.tokenizer, study.config)
        for arm in arms:
            _learn(study, arm, arms, ray_arguments)
        # Held-out answers are greedy, however training answers are drawn.
        greedy = study.config.model_copy(update={"temperature": 0.0, "samples": 1})
        asker = Asker(pool, study.checkpoint.tokenizer, greedy).answering()
        return _test_all(study, arms, asker)
    finally:
        pool.close()


def _check_claim(study: Study) -> None:
    """Checks that the directory is the same ablation's, if it is there."""
    what = f"ablation {study.config.name}"
    check_directory(study.directory, study.config, FREE_ON_RESUME, what)
    named = study.directory / CHECKPOINT
    if named.exists():
        saved = json.loads(named.read_text(encoding="utf-8"))
        before = {"checkpoint": saved["content_hash"], **saved}
        now = {"checkpoint": study.checkpoint.content_hash, "problems": _problems(study)}
        check_same_inputs(before, now, what)


def _claim(study: Study) -> None:
    """Makes the directory this ablation's."""
    save_config(study.directory, study.config)
    content = {"content_hash": study.checkpoint.content_hash, "problems": _problems(study)}
    replace_json(study.directory / CHECKPOINT, content)
    _say_what_stays(study)


def _say_what_stays(study: Study) -> None:
    on_stop(
        f"the same command goes on in {study.directory}: what arms have learned and answered stays"
    )


def _problems(study: Study) -> str:
    return problems_hash(study.training)


def _learn(study: Study, arm: Arm, arms: list[Arm], ray_arguments: Mapping[str, Any]) -> None:
    if study.is_learned(arm):
        return
    started = time.perf_counter()
    print(f"[{arms.index(arm) + 1}/{len(arms)}] {arm.label} learns", flush=True)
    study.learn(arm, ray_arguments)
    _say_what_stays(study)  # PPO's run has said where it goes on
    print(f"{arm.label}: {time.perf_counter() - started:.0f} s", flush=True)


def _test_all(study: Study, arms: list[Arm], asker: Asker | None) -> list[HeldOut]:
    known: dict[str, list[Any]] = {}
    results = []
    for number, arm in enumerate(arms, start=1):
        results.append(evaluate(study, arm, asker, known))
        print(
            f"[{number}/{len(arms)}] {arm.label}: {100 * results[-1].accuracy:.1f} % of "
            f"{len(study.held_out)} held-out problems, {results[-1].tokens.mean():.1f} tokens, "
            f"reward {results[-1].rewards.mean():.3f}",
            flush=True,
        )
    return results
