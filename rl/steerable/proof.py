"""The proof: train the model, let every arm search for its gates, check what was promised.

runs/NAME/model/               the checkpoint
runs/NAME/problems/VARIANT/    train.jsonl, test.jsonl, right_gates.json
runs/NAME/ablations/VARIANT/   as `python -m rl.ablate` has it
runs/NAME/proof.json, proof.md what was promised and what came out
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray

from evals.problems import Problem
from evals.results import markdown
from evals.statistics import mcnemar_exact
from mhc_model.checkpoint import load_checkpoint, save_checkpoint
from mhc_model.errors import ConfigError
from mhc_model.files import replace_json, replace_text
from mhc_model.running import Heartbeat, on_stop, ray_cluster
from rl.ablate import CONSTANT, KNOWN, LEARNED, PPO, AblateConfig, Findings, HeldOut, run_ablation
from rl.directory import check_directory, locked_run, save_config
from rl.steerable.config import SteerableConfig, Variant
from rl.steerable.task import all_problems, kind_of, right_gates, with_digit
from rl.steerable.training import train_model

FREE_ON_RESUME = ("storage", "variants", "ablation", "recovered", "p_value")


class Check(NamedTuple):
    """One thing that was promised."""

    variant: str
    run: str
    learned: float
    rl: float
    known: float
    recovered: float  # share of the gain from the learned to the known gates
    p_value: float  # McNemar, against the learned gates
    best_constant: float | None  # where right gates depend on the problem
    constant_p: float | None  # McNemar, against that constant
    holds: bool


def prove(config: SteerableConfig, ray_arguments: Mapping[str, Any]) -> list[Check]:
    """Runs everything that an earlier start has not done, and writes proof.json and proof.md.

    Args:
        config: of the proof.
        ray_arguments: keyword arguments of `ray.init`.

    Returns:
        One check for each run of PPO.

    Raises:
        MHCError: if the name belongs to another proof, another process is at it, or something
            cannot be written.
    """
    directory = Path(config.storage).resolve() / config.name
    with locked_run(directory):
        return _prove(directory, config, ray_arguments)


def _prove(
    directory: Path, config: SteerableConfig, ray_arguments: Mapping[str, Any]
) -> list[Check]:
    check_directory(directory, config, FREE_ON_RESUME, f"proof {config.name}")
    with ray_cluster(ray, ray_arguments), Heartbeat(f"proof {config.name}"):
        save_config(directory, config)
        on_stop(f"the same command goes on in {directory}: what is learned and answered stays")
        return _prove_all(directory, config, ray_arguments)


def _prove_all(
    directory: Path, config: SteerableConfig, ray_arguments: Mapping[str, Any]
) -> list[Check]:
    problems = all_problems(config.seed)
    held_out, training = problems[: config.test_problems], problems[config.test_problems :]
    checkpoint = directory / "model"
    if not checkpoint.exists():
        print(f"training the model on {len(training)} problems: {checkpoint}", flush=True)
        model, tokenizer = train_model(config.model, training, config.seed)
        save_checkpoint(checkpoint, model, tokenizer)
    sources = {name: directory / "problems" / name for name in config.variants}
    for name, variant in config.variants.items():
        _write_problems(config, variant, checkpoint, sources[name], training, held_out)
    checks = []
    for name, variant in config.variants.items():
        print(f"variant {name}: red {variant.red}, blue {variant.blue}", flush=True)
        ablation = _ablation(config, name, directory / "ablations", checkpoint, sources[name])
        findings = run_ablation(ablation, ray_arguments)
        checks += check(name, variant, findings, config)
    replace_json(directory / "proof.json", [entry._asdict() for entry in checks])
    text = proof_table(checks)
    replace_text(directory / "proof.md", f"{text}\n")
    print(f"\n{text}\n\n{sum(entry.holds for entry in checks)} of {len(checks)} hold", flush=True)
    return checks


def check(name: str, variant: Variant, findings: Findings, config: SteerableConfig) -> list[Check]:
    """What was promised, for every run of PPO.

    Raises:
        ConfigError: if there is nothing to gain.
    """
    learned, known = findings.of(LEARNED)[0], findings.of(KNOWN)[0]
    if known.accuracy <= learned.accuracy:
        raise ConfigError(
            f"variant {name}: the known gates solve {100 * known.accuracy:.1f} %, the learned ones "
            f"{100 * learned.accuracy:.1f} %: there is nothing to gain; let it want what "
            f"model.learned_gate does not spell, and train the model for more steps"
        )
    constant = _best_constant(findings) if variant.is_contextual else None
    checks = []
    for result in findings.results:
        if result.arm.method != PPO:
            continue
        recovered = (result.accuracy - learned.accuracy) / (known.accuracy - learned.accuracy)
        p_value = _p_value(learned, result)
        holds = recovered >= config.recovered and p_value < config.p_value
        constant_p = None
        if constant is not None:
            constant_p = _p_value(constant, result)
            holds = holds and result.accuracy > constant.accuracy and constant_p < config.p_value
        checks.append(
            Check(
                name,
                result.arm.label,
                learned.accuracy,
                result.accuracy,
                known.accuracy,
                recovered,
                p_value,
                None if constant is None else constant.accuracy,
                constant_p,
                holds,
            )
        )
    return checks


def proof_table(checks: Sequence[Check]) -> str:
    """A Markdown table, a row a check."""
    header = [
        *("variant", "run", "learned", "RL", "known gates", "recovered", "p"),
        *("best constant", "p against it", "holds"),
    ]
    rows = [
        [
            entry.variant,
            entry.run,
            f"{100 * entry.learned:.1f} %",
            f"{100 * entry.rl:.1f} %",
            f"{100 * entry.known:.1f} %",
            f"{100 * entry.recovered:.1f} %",
            f"{entry.p_value:.1e}",
            "" if entry.best_constant is None else f"{100 * entry.best_constant:.1f} %",
            "" if entry.constant_p is None else f"{entry.constant_p:.1e}",
            "yes" if entry.holds else "no",
        ]
        for entry in checks
    ]
    return markdown(header, rows)


def _best_constant(findings: Findings) -> HeldOut:
    """The vector that is best on the held-out problems themselves, of all that some arm found or
    that were given: the hardest to beat."""
    constant = [
        result
        for result in findings.results
        if result.arm.method in CONSTANT or (result.arm.seed is None and result.arm.name != KNOWN)
    ]
    return max(constant, key=lambda result: result.accuracy)


def _p_value(first: HeldOut, second: HeldOut) -> float:
    return mcnemar_exact(first.solved.tolist(), second.solved.tolist()).p_value


def _ablation(
    config: SteerableConfig, name: str, storage: Path, checkpoint: Path, source: Path
) -> AblateConfig:
    others = [arm for arm in config.ablation.arms if not arm.startswith(PPO)]
    return config.ablation.model_copy(
        update={
            "name": name,
            "storage": str(storage),
            "checkpoint": str(checkpoint),
            "data": str(source),
            "known": str(source / "right_gates.json"),
            "test_problems": config.test_problems,
            "arms": (*(f"{PPO}:{space}" for space in config.variants[name].spaces), *others),
        }
    )


def _write_problems(
    config: SteerableConfig,
    variant: Variant,
    checkpoint: Path,
    directory: Path,
    training: Sequence[Problem],
    held_out: Sequence[Problem],
) -> None:
    """Problems and right gates of a variant.

    Raises:
        ConfigError: if an earlier start wanted something else under the variant's name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for split, problems in (("train", training), ("test", held_out)):
        graded = [with_digit(problem, variant.wanted[kind_of(problem)]) for problem in problems]
        text = "".join(
            json.dumps({"question": problem.question, "answer": problem.answer}) + "\n"
            for problem in graded
        )
        path = directory / f"{split}.jsonl"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"variant {directory.name} was started with other problems than red {variant.red}, "
                f"blue {variant.blue} ({path}); give the variant another name"
            )
        replace_text(path, text)
    learned = load_checkpoint(checkpoint).model.learned_gates().detach()
    gates = {
        # The id that the problem has when it is read from its line.
        f"test-{number:05d}": [
            round(gate, 6)
            for gate in right_gates(
                variant.wanted[kind_of(problem)], config.model.keys, learned
            ).tolist()
        ]
        for number, problem in enumerate(held_out)
    }
    replace_json(directory / "right_gates.json", gates)
