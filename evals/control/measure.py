"""One run of `python -m evals.control`: a checkpoint with behaviours to control.json."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.control.figures import figures_by_level, figures_of
from evals.control.points import Point, control_points
from evals.control.settings import ControlSettings
from evals.gate_choice import GateChoice
from evals.measure import machine_facts, package_versions
from evals.plans import Inputs, make_plan, read_inputs, report_malformed
from evals.problems import expected_style, style_of
from evals.report import CONTROL, control_picture, read_control
from evals.store import SampleStore
from evals.tasks import Plan, TextPlan
from mhc_model.engine import Engine
from mhc_model.errors import CheckpointError
from mhc_model.files import replace_text
from mhc_model.running import counted, doing, on_stop
from mhc_model.settings import dump_settings

TASK = "gsm8k"
# Settings that change how fast samples come, or where they go, but not what they are.
FREE = {"out", "max_batch", "device", "checkpoint"}


def measure_control(settings: ControlSettings) -> dict[str, Any]:
    """Answers the problems at every point, writes the files, returns what control.json holds.

    Raises:
        MHCError: of the checkpoint, its behaviours, the problems or the settings; nothing is
            written.
    """
    evaluation = settings.evaluation()
    with doing("reading the problems"):
        inputs = read_inputs(evaluation)
    report_malformed(inputs)
    with doing("loading the model"):
        engine = Engine.from_checkpoint(
            settings.checkpoint, max_batch=settings.max_batch, device=settings.device
        )
    if engine.tokenizer is None:
        raise CheckpointError(f"{settings.checkpoint} has no tokenizer; evaluation needs one")
    points = control_points(engine.model.config, settings.between, settings.checkpoint)
    choices = {point.name: GateChoice(point.gates) for point in points}
    plans = {
        name: make_plan(TASK, evaluation, inputs, choice, engine)
        for name, choice in choices.items()
    }
    out = Path(settings.out)
    on_stop(f"the same command goes on in {out}: samples that are finished stay in it")
    store = SampleStore(out, _identity(settings, engine, plans))
    try:
        dump_settings(settings, out / "config.yaml")
        measured = {**_measured_before(out), **_answer(plans, inputs, store)}
        store.finish([(name, identity) for name, plan in plans.items() for identity in plan.ids])
    finally:
        store.close()
    facts = plans[points[0].name].facts
    found = {
        "checkpoint": {"path": settings.checkpoint, "content_hash": engine.checkpoint_hash},
        "problems": {
            "source": settings.data,
            **{name: facts[name] for name in ("n", "prompts_sha256", "max_tokens", "malformed")},
        },
        "behaviours": {
            name: {**one.model_dump(mode="json"), "style": expected_style(name, one)}
            for name, one in engine.model.config.behaviours.items()
        },
        "points": [
            _entry(point, choices[point.name], engine, store.rows(point.name, plan.ids))
            for point, plan in zip(points, plans.values(), strict=True)
        ],
        "settings": settings.model_dump(mode="json"),
        "versions": package_versions(),
        "machine": machine_facts(engine.device),
        "measured": measured,
    }
    control_picture(found).save(out)
    # Last: where it is, everything is.
    replace_text(out / CONTROL, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return found


def _answer(
    plans: Mapping[str, Plan | TextPlan], inputs: Inputs, store: SampleStore
) -> dict[str, Any]:
    """Answers what is missing at every point; returns how long that took, by point."""
    levels = {problem.id: problem.level for problem in inputs.problems}
    timings = {}
    for name, plan in plans.items():
        done = store.done(name)
        if done >= set(plan.ids):
            continue
        started, tokens = time.perf_counter(), 0
        with counted(name, len(plan.ids), len(done)) as add:
            for row in plan.run(None, done):
                style = style_of(row["completion"])
                store.add(name, {**row, "style": style, "level": levels[row["id"]]})
                tokens += row["tokens"]
                add()
        seconds = time.perf_counter() - started
        timings[name] = {
            "samples": len(plan.ids) - len(done),
            "seconds": round(seconds, 3),
            "tokens_per_s": round(tokens / seconds, 1),
        }
    return timings


def _measured_before(out: Path) -> dict[str, Any]:
    """The timings of an earlier, whole run in this directory; empty if there was none."""
    return read_control(out)["measured"] if (out / CONTROL).exists() else {}


def _entry(
    point: Point, choice: GateChoice, engine: Engine, samples: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    numbers = choice.fixed(engine)
    assert numbers is not None  # no point is a policy, and the model is not plain
    gates = [round(value, 6) for value in numbers.tolist()]
    return {
        **asdict(point),
        "gates": gates,
        "gate": gates[0] if len(set(gates)) == 1 else None,
        "all": figures_of(samples, point.style),
        "levels": figures_by_level(samples, point.style),
    }


def _identity(
    settings: ControlSettings, engine: Engine, plans: Mapping[str, Plan | TextPlan]
) -> dict[str, Any]:
    """What samples depend on: a directory holds those of one such thing only."""
    return {
        "checkpoint": engine.checkpoint_hash,
        "settings": settings.model_dump(mode="json", exclude=FREE),
        "device": engine.device.type,
        "plans": {name: plan.facts for name, plan in plans.items()},
    }
