"""From settings and an engine to plans: problems, gates, requests."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from evals.gate_choice import GateChoice
from evals.problems import BUILTIN, Problem, load_problems, read_problems, with_words
from evals.settings import BPB, CHOICE_TASKS, N_SHOT, EvalSettings
from evals.tasks import (
    CHOICE_ROWS,
    ChoiceProblem,
    Plan,
    TextPlan,
    choice_context,
    choice_plan,
    document,
    fingerprint,
    gsm8k_plan,
    load_choices,
    prompt_tokens,
    text_plan,
)
from mhc_model.engine import Engine
from mhc_model.errors import ConfigError, DataError

HUB = "hub"
GSM8K_HUB = "openai/gsm8k"


@dataclass
class Inputs:
    """Everything read from files before a model is loaded.

    Attributes:
        problems: of GSM8K or the built-in generator; empty if no task wants them.
        shots: worked examples by task.
        choices: problems by multiple-choice task.
        texts: of the text files; empty if bpb reads the problems' documents.
        malformed: messages by task, one a row that is no problem.
    """

    problems: list[Problem] = field(default_factory=list)
    shots: dict[str, list[Problem]] = field(default_factory=dict)
    choices: dict[str, list[ChoiceProblem]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    malformed: dict[str, list[str]] = field(default_factory=dict)


def read_inputs(settings: EvalSettings) -> Inputs:
    """Reads what the tasks need.

    Raises:
        DataError: if a source is not found, cannot be read or has no problem.
        ConfigError: if a task has no source here.
    """
    inputs = Inputs(texts=_read_texts(settings.text) if BPB in settings.tasks else [])
    generative = [task for task in settings.tasks if task in N_SHOT]
    if generative or (BPB in settings.tasks and not inputs.texts):
        source = _source(settings.data, "gsm8k", GSM8K_HUB)
        parsed = read_problems(source, "test", settings.limit, settings.seed)
        inputs.problems = parsed.problems
        inputs.malformed = {task: parsed.malformed for task in generative}
        inputs.shots = {task: _shots(settings, source, N_SHOT[task]) for task in generative}
    for task in settings.tasks:
        if task in CHOICE_TASKS:
            data = settings.data if settings.choice_data is None else settings.choice_data
            source = _source(data, task, CHOICE_ROWS[task].hub)
            if source.startswith(BUILTIN):
                raise ConfigError(
                    f"{task} has no built-in problems; give --data DIR with {task}/ or --data hub, "
                    f"or --choice-data beside the data of gsm8k"
                )
            choices = load_choices(task, source, settings.limit)
            inputs.choices[task] = choices.problems
            inputs.malformed[task] = choices.malformed
    return inputs


def report_malformed(inputs: Inputs) -> None:
    """Names the rows that were left out on standard error."""
    for task, messages in inputs.malformed.items():
        for message in messages:
            print(f"{task}: {message}", file=sys.stderr)
        if messages:
            print(f"{task}: {len(messages)} malformed rows left out", file=sys.stderr)


def make_plan(
    task: str, settings: EvalSettings, inputs: Inputs, choice: GateChoice, engine: Engine
) -> Plan | TextPlan:
    """The plan of one task for one engine.

    Raises:
        GateError: if the gates do not fit the model.
        ConfigError: if a gate policy has no prompt to read.
    """
    if task == BPB:
        return _text_plan(settings, inputs, choice, engine)
    bos = settings.bos
    if task in CHOICE_TASKS:
        problems = inputs.choices[task]
        rows = _rows(choice, engine, problems, lambda p: choice_context(engine, p, bos))
        plan = choice_plan(task, engine, problems, rows, bos)
    else:
        shots, words = inputs.shots[task], settings.words
        asked = [with_words(shot, words) for shot in shots]
        rows = _rows(
            choice,
            engine,
            inputs.problems,
            lambda p: prompt_tokens(engine.tokenizer, with_words(p, words), asked, bos),
        )
        limit = settings.max_tokens
        plan = gsm8k_plan(task, engine, inputs.problems, rows, shots, limit, bos, words)
    plan.facts["malformed"] = inputs.malformed[task]
    plan.facts["gates_sha256"] = _gates_hash(rows)
    return plan


def _text_plan(
    settings: EvalSettings, inputs: Inputs, choice: GateChoice, engine: Engine
) -> TextPlan:
    if inputs.texts:
        if choice.policy is not None:
            raise ConfigError("a gate policy reads questions and --text has none: use fixed gates")
        texts, source = inputs.texts, ", ".join(settings.text)
        rows = choice.rows(engine, [[] for _ in texts])  # fixed gates: no prompt is read
    else:
        texts = [document(problem) for problem in inputs.problems]
        source = f"documents of {settings.data}"
        # A policy sees the question only, never the answer that is to be predicted.
        rows = _rows(
            choice,
            engine,
            inputs.problems,
            lambda p: prompt_tokens(engine.tokenizer, p, (), settings.bos),
        )
    plan = text_plan(BPB, engine, texts, rows, source)
    plan.facts["gates_sha256"] = _gates_hash(rows)
    return plan


def _rows(
    choice: GateChoice,
    engine: Engine,
    problems: Sequence[object],
    tokens: Callable[..., list[int]],
) -> Tensor | None:
    """One row of gates a problem; only a policy reads the prompts."""
    prompts = [[] if choice.policy is None else tokens(problem) for problem in problems]
    return choice.rows(engine, prompts)


def _gates_hash(rows: Tensor | None) -> str:
    """Of one row a problem; the learned gates are the checkpoint's own."""
    return "learned" if rows is None else fingerprint([[str(rows.tolist())]])


def _source(data: str, task: str, hub: str) -> str:
    """Where a task's rows are: the task's own directory, its place on the hub, or `data` itself."""
    if data == HUB:
        return hub
    own = Path(data) / task
    return str(own) if own.is_dir() else data


def _shots(settings: EvalSettings, source: str, count: int) -> list[Problem]:
    if count == 0:
        return []
    if settings.shots_data is None and Path(source).is_file():
        raise ConfigError(
            f"{count}-shot prompts need worked examples and {source} is a single file; name a "
            f"file or directory of training problems with --shots-data"
        )
    source = settings.shots_data or source
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
                # As training reads texts: without a byte order mark, lines with one end.
                texts.append(file.read().decode("utf-8-sig").replace("\r\n", "\n"))
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"text file {path} cannot be read: {error}") from None
    return texts
