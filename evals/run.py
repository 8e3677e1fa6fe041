"""One evaluation: a checkpoint and a choice of gates to results.json and samples.jsonl."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evals.gate_choice import GateChoice
from evals.measure import (
    Load,
    MemorySettings,
    machine_facts,
    measure_latency,
    measure_memory,
    package_versions,
    projection_errors,
    with_iterations,
)
from evals.plans import make_plan, read_inputs, report_malformed
from evals.replicas import Replicas
from evals.results import read_measured, write_results
from evals.settings import LATENCY, MEMORY, SCORED, SINKHORN, EvalSettings
from evals.store import SampleStore
from evals.tasks import Plan, Runner, TextPlan
from mhc_model.checkpoint import load_checkpoint
from mhc_model.engine import Engine
from mhc_model.errors import CheckpointError
from mhc_model.running import Heartbeat, counted, doing, on_stop

# Settings that change how fast samples come, or where they go, but not what they are. The plans say
# which problems choice_data gave.
FREE = {"out", "max_batch", "replicas", "ray", "device", "latency", "against", "checkpoint"}
FREE |= {"choice_data"}


def run(settings: EvalSettings) -> dict[str, Any]:
    """Evaluates, writes the result files and returns what results.json holds.

    Raises:
        MHCError: of the checkpoint, the problems, the gates or the settings; nothing is written.
    """
    started = time.perf_counter()
    with doing("reading the problems"):
        inputs = read_inputs(settings)
    report_malformed(inputs)
    choice = GateChoice(settings.gates)
    with doing("loading the model"):
        engine = Engine.from_checkpoint(
            settings.checkpoint, max_batch=settings.max_batch, device=settings.device
        )
    if engine.tokenizer is None:
        raise CheckpointError(f"{settings.checkpoint} has no tokenizer; evaluation needs one")
    choice.check(engine)
    scored = [task for task in settings.tasks if task in SCORED]
    plans = {task: make_plan(task, settings, inputs, choice, engine) for task in scored}
    variants = _sinkhorn_engines(settings, engine)
    for iterations, variant in variants.items():
        for task in scored:
            name = f"{task}@{SINKHORN}-{iterations}"
            plans[name] = make_plan(task, settings, inputs, choice, variant)
    out = Path(settings.out)
    on_stop(f"the same command goes on in {out}: samples that are finished stay in it")
    store = SampleStore(out, _identity(settings, engine, plans))
    try:
        measured = read_measured(out)
        scored_now = _score(settings, engine, plans, store)
        measured |= scored_now
        store.finish([(name, identity) for name, plan in plans.items() for identity in plan.ids])
        with Heartbeat("measuring time and memory"):
            measured |= _measure(settings, engine, variants)
    finally:
        store.close()
    if scored_now or "wall_time_s" not in measured:  # else the earlier run's stays
        measured["wall_time_s"] = round(time.perf_counter() - started, 3)
    samples = {name: store.rows(name, plan.ids) for name, plan in plans.items()}
    entries = {name: {**p.facts, **p.summarise(samples[name])} for name, p in plans.items()}
    results = {
        "checkpoint": {"path": settings.checkpoint, "content_hash": engine.checkpoint_hash},
        "gates": _describe(choice, engine, [row for name in scored for row in samples[name]]),
        "tasks": {task: entries[task] for task in scored},
        SINKHORN: _sinkhorn_entry(variants, scored, entries, plans),
        "settings": settings.model_dump(mode="json"),
        "versions": package_versions(),
        "machine": machine_facts(engine.device),
        "measured": measured,
    }
    write_results(out, results)
    return results


def _score(
    settings: EvalSettings,
    engine: Engine,
    plans: dict[str, Plan | TextPlan],
    store: SampleStore,
) -> dict[str, Any]:
    """Runs what is missing of every plan; returns how long it took, by task."""
    timings = {}
    with _runner(settings, engine) as runner:
        for name, plan in plans.items():
            done = store.done(name)
            if done >= set(plan.ids):
                continue
            own = runner if plan.engine is engine else None
            started = time.perf_counter()
            tokens = 0
            count = len(plan.ids)
            with counted(name, count, len(done)) as add:
                for row in plan.run(own, done):
                    store.add(name, row)
                    tokens += row.get("tokens", 0)
                    add()
            seconds = time.perf_counter() - started
            scored = count - len(done)
            timings[name] = {
                "samples": scored,
                "seconds": round(seconds, 3),
                "samples_per_s": round(scored / seconds, 2),
            }
            if tokens:
                timings[name]["tokens_per_s"] = round(tokens / seconds, 1)
    return {"tasks": timings} if timings else {}


@contextmanager
def _runner(settings: EvalSettings, engine: Engine) -> Iterator[Runner | None]:
    if settings.replicas == 1:
        yield None
        return
    with Replicas(
        settings.checkpoint,
        settings.replicas,
        settings.max_batch,
        str(engine.device),
        settings.ray,
        engine.checkpoint_hash,
    ) as replicas:
        yield replicas.run


def _measure(settings: EvalSettings, engine: Engine, variants: dict[int, Engine]) -> dict[str, Any]:
    """Latency and peak memory of this checkpoint, its projections and the others."""
    found: dict[str, Any] = {}
    latency = settings.latency
    load = None
    if latency.prompt_tokens is not None and latency.new_tokens is not None:
        load = Load(latency.prompt_tokens, latency.new_tokens)
    if LATENCY in settings.tasks:
        models = {settings.checkpoint: engine.model}
        for path in settings.against:
            models[path] = load_checkpoint(path, str(engine.device)).model
        for iterations, variant in variants.items():
            models[f"{settings.checkpoint}, {iterations} Sinkhorn iterations"] = variant.model
        found[LATENCY] = measure_latency(models, latency.batches, load, latency.repeats)
    if MEMORY in settings.tasks:
        load = load or Load(engine.max_seq_len // 2, max(2, engine.max_seq_len // 4))
        found[MEMORY] = {
            path: measure_memory(
                MemorySettings(
                    checkpoint=path,
                    batch=latency.batches[-1],
                    prompt_tokens=load.prompt_tokens,
                    new_tokens=load.new_tokens,
                    device=str(engine.device),
                )
            )
            for path in (settings.checkpoint, *settings.against)
        }
    return found


def _sinkhorn_engines(settings: EvalSettings, engine: Engine) -> dict[int, Engine]:
    if SINKHORN not in settings.tasks:
        return {}
    return {
        iterations: Engine(
            with_iterations(engine.model, iterations),
            engine.tokenizer,
            settings.max_batch,
            checkpoint_hash=engine.checkpoint_hash,
        )
        for iterations in settings.sinkhorn_iterations
    }


def _sinkhorn_entry(
    variants: dict[int, Engine],
    scored: Sequence[str],
    entries: dict[str, dict[str, Any]],
    plans: dict[str, Plan | TextPlan],
) -> dict[str, Any]:
    """Scores and errors of H_res by number of iterations."""
    if not variants:
        return {}
    plan = plans[scored[0]]
    windows = (
        [window.tokens for window in plan.windows[:8]]
        if isinstance(plan, TextPlan)
        else [request.prompt for item in plan.items[:8] for request in item.requests[:1]]
    )
    return {
        str(iterations): {
            **projection_errors(variant.model, windows),
            "tasks": {task: entries[f"{task}@{SINKHORN}-{iterations}"] for task in scored},
        }
        for iterations, variant in variants.items()
    }


def _identity(
    settings: EvalSettings, engine: Engine, plans: dict[str, Plan | TextPlan]
) -> dict[str, Any]:
    """What samples depend on: a directory holds those of one such thing only."""
    kept = settings.model_dump(mode="json", exclude=FREE)
    return {
        "checkpoint": engine.checkpoint_hash,
        "settings": kept,
        "device": engine.device.type,
        "plans": {name: plan.facts for name, plan in plans.items()},
    }


def _describe(
    choice: GateChoice, engine: Engine, samples: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the gates were: as asked for, and in numbers for each sublayer.

    Those of a policy are means over the samples. `answer_mean` is there where answers had others.
    """
    config = engine.model.config
    if config.gateless is not None:
        kind = "a plain model" if config.mhc is None else config.gateless
        return {"description": f"none: {kind}", "mean": None}
    fixed = choice.fixed(engine)
    if fixed is not None:
        means = fixed.view(-1, fixed.shape[-1]).tolist()
    else:
        ran = [sample for sample in samples if sample.get("gates") is not None]
        means = [_mean([sample["gates"] for sample in ran])]
        if any(sample.get("answer_gates") for sample in ran):
            answers = [sample.get("answer_gates") or sample["gates"] for sample in ran]
            means.append(_mean(answers))
    described = {"description": choice.argument}
    for name, mean in zip(("mean", "answer_mean"), means, strict=False):
        described[name] = [round(value, 6) for value in mean] or None
    return described


def _mean(vectors: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]
