"""`python -m evals`: evaluates one checkpoint with one choice of gates.

python -m evals --checkpoint runs/mhc --tasks gsm8k bpb --data builtin:1 --limit 400 --out runs/e
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from evals.bits_per_byte import bits_per_byte
from evals.gate_choice import GateChoice
from evals.gsm8k import MAX_TOKENS, GSM8KResult, evaluate_gsm8k, prompt_tokens
from evals.problem import Problem
from evals.results import (
    RESULTS,
    package_versions,
    results_table,
    sample_rows,
    task_results,
    write_results,
)
from evals.tasks import document, load_problems
from mhc_model.engine import Engine
from mhc_model.errors import CheckpointError, ConfigError, DataError, MHCError
from mhc_model.settings import Settings, parse_command_line

BPB = "bpb"
N_SHOT = {"gsm8k": 0, "gsm8k_8shot": 8}
TASKS = (*N_SHOT, BPB)


class EvalSettings(Settings):
    """Configuration of `python -m evals`."""

    checkpoint: str = Field(description="checkpoint or run directory")
    out: str = Field(description="directory of results.json and samples.jsonl")
    gates: str = Field(
        "learned",
        description="learned; a number; 1, L or 2L numbers separated by commas; FILE.json; or "
        "policy:DIR",
    )
    tasks: tuple[str, ...] = Field(
        ("gsm8k",), min_length=1, description=f"one or more of {', '.join(TASKS)}"
    )
    data: str = Field(
        "builtin:1",
        description="problems: JSON lines (a file or directory), builtin:LEVEL, or a hub name",
    )
    limit: int | None = Field(None, ge=1, description="the first N problems; none takes all")
    seed: int = Field(0, ge=0, description="of the built-in problems")
    shots_data: str | None = Field(
        None,
        description="worked examples of gsm8k_8shot, its first 8; none is the training split of "
        "data, where data is not a single file",
    )
    text: tuple[str, ...] = Field(
        (), description="text files of bpb, plain or .gz; none is the problems' own documents"
    )
    max_tokens: int = Field(MAX_TOKENS, ge=1, description="most tokens of an answer")
    max_batch: int = Field(32, ge=1, description="sequences that run at once")
    device: str = Field("auto", description="cpu, cuda, cuda:0, ...; auto is CUDA if there is one")

    @field_validator("tasks", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        return [part for name in names for part in str(name).split(",") if part]

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in TASKS]
        if unknown or len(set(value)) != len(value):
            raise ValueError(f"allowed, each once: {', '.join(TASKS)}")
        return value


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    try:
        settings = parse_command_line(
            EvalSettings, "evals", "Evaluates a checkpoint: GSM8K, built-in problems, text.", argv
        )
        results = run(settings)
    except MHCError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\ngates: {results['gates']['description']}\n")
    print(results_table(results))
    print(f"\nresults: {Path(settings.out) / RESULTS}")
    return 0


def run(settings: EvalSettings) -> dict[str, Any]:
    """Evaluates, writes the result files and returns what results.json holds.

    Raises:
        MHCError: of the checkpoint, the problems, the gates or the settings; nothing is written.
    """
    started = time.perf_counter()
    texts = _read_texts(settings.text) if BPB in settings.tasks else []
    problems: list[Problem] = []
    if not texts or set(settings.tasks) != {BPB}:
        problems = load_problems(settings.data, "test", settings.limit, settings.seed)
    shots = {task: _shots(settings, N_SHOT[task]) for task in settings.tasks if task in N_SHOT}
    choice = GateChoice(settings.gates)
    if choice.policy is not None and texts:
        raise ConfigError("a gate policy reads questions and --text has none: use fixed gates")
    engine = Engine.from_checkpoint(
        settings.checkpoint, max_batch=settings.max_batch, device=settings.device
    )
    if engine.tokenizer is None:
        raise CheckpointError(f"{settings.checkpoint} has no tokenizer; evaluation needs one")
    tasks: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    for task in settings.tasks:
        if task == BPB:
            tasks[task] = _run_bpb(settings, engine, choice, problems, texts)
            continue
        result = _run_gsm8k(settings, engine, choice, problems, shots[task])
        tasks[task] = task_results(result)
        samples += sample_rows(task, result)
    results = {
        "checkpoint": {"path": settings.checkpoint, "content_hash": engine.checkpoint_hash},
        "gates": _describe(choice, engine, samples),
        "tasks": tasks,
        "settings": settings.model_dump(mode="json"),
        "versions": package_versions(),
        "device": str(engine.device),
        "wall_time_s": round(time.perf_counter() - started, 3),
    }
    write_results(Path(settings.out), results, samples)
    return results


def _run_gsm8k(
    settings: EvalSettings,
    engine: Engine,
    choice: GateChoice,
    problems: Sequence[Problem],
    shots: Sequence[Problem],
) -> GSM8KResult:
    prompts = [prompt_tokens(engine.tokenizer, problem, shots) for problem in problems]
    gates = choice.rows(engine, prompts)
    return evaluate_gsm8k(engine, problems, gates, shots, settings.max_tokens, progress=True)


def _run_bpb(
    settings: EvalSettings,
    engine: Engine,
    choice: GateChoice,
    problems: Sequence[Problem],
    texts: Sequence[str],
) -> dict[str, Any]:
    if texts:
        documents, prompts = texts, [[] for _ in texts]  # fixed gates: no prompt is read
    else:
        documents = [document(problem) for problem in problems]
        # A policy sees the question only, never the answer that is to be predicted.
        prompts = [prompt_tokens(engine.tokenizer, problem) for problem in problems]
    gates = choice.rows(engine, prompts)
    started = time.perf_counter()
    value = bits_per_byte(engine.model, engine.tokenizer, documents, gates, settings.max_batch)
    content = "\0".join(documents).encode()
    return {
        "bits_per_byte": value,
        "source": ", ".join(settings.text) or f"documents of {settings.data}",
        "documents": len(documents),
        "bytes": sum(len(text.encode()) for text in documents),
        "texts_sha256": hashlib.sha256(content).hexdigest(),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _describe(
    choice: GateChoice, engine: Engine, samples: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the gates were: in words, and their mean over the samples for each sublayer."""
    if engine.model.config.mhc is None:
        return {"description": "none: a plain model", "mean": None}
    vectors = [sample["gates"] for sample in samples if sample["gates"] is not None]
    mean = [round(sum(column) / len(vectors), 6) for column in zip(*vectors, strict=True)]
    return {"description": choice.argument, "mean": mean or None}


def _shots(settings: EvalSettings, count: int) -> list[Problem]:
    if count == 0:
        return []
    source = settings.shots_data or settings.data
    if settings.shots_data is None and Path(source).is_file():
        raise ConfigError(
            f"{count}-shot prompts need worked examples and {source} is a single file; name a "
            f"file or directory of training problems with --shots-data"
        )
    shots = load_problems(source, "train", count)
    if len(shots) < count:
        raise DataError(f"{source} has {len(shots)} worked examples; {count} are needed")
    return shots


def _read_texts(paths: Sequence[str]) -> list[str]:
    texts = []
    for name in paths:
        path = Path(name)
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                texts.append(file.read().decode("utf-8"))
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"text file {path} cannot be read: {error}") from None
    return texts
