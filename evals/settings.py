"""Configuration of `python -m evals`, and the names that all of the package shares."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from mhc_model.settings import RaySettings, Settings

N_SHOT = {"gsm8k": 0, "gsm8k_8shot": 8}
HELLASWAG, ARC_EASY = CHOICE_TASKS = ("hellaswag", "arc_easy")
BPB, LATENCY, MEMORY, SINKHORN = "bpb", "latency", "memory", "sinkhorn"
SCORED = (*N_SHOT, *CHOICE_TASKS, BPB)
TASKS = (*SCORED, LATENCY, MEMORY, SINKHORN)
MAX_TOKENS = 256  # of an answer: lm-evaluation-harness's default; its gsm8k task sets none
POLICY = "policy:"  # before the directory, in --gates


class LatencySettings(Settings):
    """What the tasks latency and memory run."""

    batches: tuple[int, ...] = Field(
        (1, 8, 32), min_length=1, description="numbers of requests at once; memory takes the last"
    )
    prompt_tokens: int | None = Field(
        None, ge=1, description="of each prompt; none is half of the context, at most 512"
    )
    new_tokens: int | None = Field(
        None, ge=2, description="of each answer; none is a quarter of the context, at most 128"
    )
    repeats: int = Field(10, ge=1, description="timed repeats, through all models in turn")

    @field_validator("batches")
    @classmethod
    def _check_batches(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError("batches must be at least 1")
        return value

    @model_validator(mode="after")
    def _check_lengths(self) -> LatencySettings:
        if (self.prompt_tokens is None) != (self.new_tokens is None):
            raise ValueError("give both prompt_tokens and new_tokens, or neither")
        return self


class EvalSettings(Settings):
    """Configuration of `python -m evals`."""

    checkpoint: str = Field(description="checkpoint or run directory")
    out: str = Field(
        description="directory of results.json and samples.jsonl; the same again resumes"
    )
    gates: str = Field(
        "learned",
        description="learned; a number; 1, L or 2L numbers separated by commas; the name of a "
        "behaviour of the model; two of these as PROMPT:ANSWER; FILE.json; or policy:DIR",
    )
    tasks: tuple[str, ...] = Field(
        ("gsm8k",), min_length=1, description=f"one or more of {', '.join(TASKS)}"
    )
    data: str = Field(
        "builtin:1",
        description="problems: a directory with gsm8k/, hellaswag/ and arc_easy/, JSON lines of "
        "one task (a file or directory), builtin:LEVEL, hub, or a name on the hub",
    )
    choice_data: str | None = Field(
        None,
        description="problems of hellaswag and arc_easy, where data has those of gsm8k: a "
        "directory, file or hub; none is data",
    )
    limit: int | None = Field(None, ge=1, description="the first N problems; none takes all")
    seed: int = Field(0, ge=0, description="of the built-in problems")
    words: str | None = Field(
        None,
        min_length=1,
        description="put in brackets after every question of gsm8k and gsm8k_8shot, worked "
        "examples included: asks a plain model for what it was trained to do at these words",
    )
    shots_data: str | None = Field(
        None,
        description="worked examples of gsm8k_8shot, its first 8; none is the training split of "
        "data, where data is not a single file",
    )
    text: tuple[str, ...] = Field(
        (), description="text files of bpb, plain or .gz; none is the problems' own documents"
    )
    bos: bool = Field(
        True, description="put the document separator before every prompt, as training does"
    )
    max_tokens: int = Field(MAX_TOKENS, ge=1, description="most tokens of an answer")
    max_batch: int = Field(32, ge=1, description="sequences that run at once")
    replicas: int = Field(1, ge=1, description="engines; 2 or more are Ray actors")
    against: tuple[str, ...] = Field(
        (), description="other checkpoints for latency (interleaved with this one) and memory"
    )
    latency: LatencySettings = Field(LatencySettings(), description="tasks latency and memory")
    sinkhorn_iterations: tuple[int, ...] = Field(
        (20, 10, 5, 3),
        min_length=1,
        description="task sinkhorn: projections to score the other tasks with at inference",
    )
    device: str = Field("auto", description="cpu, cuda, cuda:0, ...; auto is CUDA if there is one")
    ray: RaySettings = Field(RaySettings(), description="where the replicas run")

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
        if SINKHORN in value and not any(name in SCORED for name in value):
            raise ValueError(f"{SINKHORN} needs a task to score: {', '.join(SCORED)}")
        return value

    @model_validator(mode="after")
    def _check_words(self) -> EvalSettings:
        if self.words is not None and not any(name in N_SHOT for name in self.tasks):
            raise ValueError(
                f"words are {self.words!r}, but none of the tasks has questions to put them after: "
                f"add {' or '.join(N_SHOT)}, or leave them out"
            )
        return self

    @field_validator("sinkhorn_iterations")
    @classmethod
    def _check_iterations(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1 or len(set(value)) != len(value):
            raise ValueError("iterations must be at least 1, each number once")
        return value
