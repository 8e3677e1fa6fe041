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
    study = Study.prepare(config)
    with locked_run(study.directory):
        return _run(study, ray_arguments)


def _run(study: Study, ray_arguments: Mapping[str, Any]) -> Findings:
    _claim(study)
    config = study.config
    arms = study.arms()
    print(
        f"ablation {config.name} in {study.directory}: {len(arms)} arms, {config.budget} rollouts "
        f"each, {len(study.held_out)} held-out problems",
        flush=True,
    )
    # PPO starts Ray itself, gradients need none.
    for arm in [arm for arm in arms if arm.method in (PPO, GRADIENT, GRADIENT_CONTEXTUAL)]:
        _learn(study, arm, arms, ray_arguments)
    if all(study.is_learned(arm) and is_tested(study, arm) for arm in arms):
        results = _test_all(study, arms, None)
    else:
        results = _with_pool(study, arms, ray_arguments)
    findings = Findings(study, results)
    path = write_report(findings)
    print(f"{findings.text()}\n\nreport: {path}", flush=True)
    return findings


def _with_pool(study: Study, arms: list[Arm], ray_arguments: Mapping[str, Any]) -> list[HeldOut]:
    """The arms that learn by asking the model, and the test of all."""
    ray.init(**ray_arguments)
    try:
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
    finally:
        ray.shutdown()


def _claim(study: Study) -> None:
    """Makes the directory, or checks that it is the same ablation's."""
    what = f"ablation {study.config.name}"
    check_directory(study.directory, study.config, FREE_ON_RESUME, what)
    named = study.directory / "checkpoint.json"
    content_hash, problems = study.checkpoint.content_hash, problems_hash(study.training)
    if named.exists():
        saved = json.loads(named.read_text(encoding="utf-8"))
        before = {"checkpoint": saved["content_hash"], **saved}
        now = {"checkpoint": content_hash, "problems": problems}
        check_same_inputs(before, now, what)
    save_config(study.directory, study.config)
    replace_json(named, {"content_hash": content_hash, "problems": problems})


def _learn(study: Study, arm: Arm, arms: list[Arm], ray_arguments: Mapping[str, Any]) -> None:
    if study.is_learned(arm):
        return
    started = time.perf_counter()
    print(f"[{arms.index(arm) + 1}/{len(arms)}] {arm.label} learns", flush=True)
    study.learn(arm, ray_arguments)
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
