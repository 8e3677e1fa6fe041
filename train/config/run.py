"""Configuration of a training run: `python -m train --config FILE --name NAME`."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mhc_model.config import Behaviour, ModelConfig, check_behaviours
from mhc_model.settings import RaySettings, Settings
from train.config.data import DataConfig, absolute
from train.config.parts import OptimizerConfig, SamplesConfig, TrackersConfig, WorkersConfig

# Of an attention head, where `depth` sets the sizes.
HEAD_CHANNELS = 128

# A run that is resumed may change these; the result is the same run, longer or on other machines.
FREE_ON_RESUME = (
    "storage",
    "steps",
    "device_batch",
    "log_every",
    "checkpoint_every",
    "keep_last",
    "keep_best",
    "eval_every",
    "samples",
    "trackers",
    "peak_tflops",
    "expected_mfu",
    "deterministic",
    "compile",
    "gradient_checkpointing",
    "workers",
    "ray",
    # The same shards may lie elsewhere: what is in them is compared.
    "data.shards",
    "data.shards_cache",
    "data.verify_shards",
)


class TrainConfig(Settings):
    """One training run."""

    name: str = Field(description="name of the run and of its directory; the same name resumes")
    storage: str = Field(
        "runs",
        description="directory of the runs, made absolute; or a URI such as s3://bucket/runs that "
        "all machines can write",
    )
    seed: int = Field(0, ge=0, description="of weights, order of the data and gate noise")
    init_from: str | None = Field(
        None,
        description="checkpoint or run directory, readable by all workers, whose weights the run "
        "starts from; it brings the model and, unless data.tokenizer names another, the tokenizer",
    )
    sequence_length: int | None = Field(
        None,
        ge=1,
        description="tokens of a training sequence; none is model.max_seq_len. init_from needs it",
    )
    depth: int | None = Field(
        None,
        ge=1,
        description="sets three fields of the model by its number of layers, as nanochat does: "
        "n_layers, d_model 64 times that (raised to whole heads) and heads of 128 channels",
    )
    trained: Literal["all", "mhc"] = Field(
        "all",
        description="what learns: everything, or hyper-connections, stream embedding and gates",
    )
    loss_on: Literal["all", "answers"] = Field(
        "all",
        description="which tokens are learned: all; or those of answers only, where data is "
        "questions with answers, whole ones side by side in each sequence",
    )
    steps: int = Field(ge=1, description="optimizer steps of the whole run")
    warmup_steps: int = Field(0, ge=0, description="steps over which learning rates rise linearly")
    warmdown_share: float = Field(
        0.4,
        ge=0.0,
        le=1.0,
        description="share of the steps, at the end, over which learning rates fall linearly to 0",
    )
    total_batch_tokens: int = Field(
        ge=1, description="tokens of one optimizer step, all workers together"
    )
    device_batch: int = Field(
        ge=1,
        description="sequences in one forward pass of one worker; gradients accumulate over as "
        "many passes as total_batch_tokens needs",
    )
    gate_noise_share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="share of training sequences with random gates, uniform in [0, 1] per "
        "sublayer, instead of the learned ones; a plain model has no gates and ignores it",
    )
    gate_noise_ramp: float = Field(
        0.2,
        ge=0.0,
        le=1.0,
        description="share of the steps over which the random gates widen from the learned ones "
        "to all of [0, 1]; 0 starts with all of it",
    )
    behaviours: dict[str, Behaviour] = Field(
        {},
        description="by name, ranges of gates that rows with `behaviour: NAME` are trained under; "
        "the model keeps them, each with its share of the rows",
    )
    loss_chunk: int = Field(
        4096,
        ge=1,
        description="tokens whose logits exist at once; larger passes compute logits in chunks, "
        "and again in the backward pass",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward pass; weights and optimizer stay float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute each layer once more in the backward pass, to save memory"
    )
    compile: bool = Field(False, description="torch.compile the training step")
    deterministic: bool = Field(
        False,
        description="only operations that give the same bits every time, where a GPU has others; "
        "slower. An operation that has none such is an error",
    )
    peak_tflops: float | None = Field(
        None,
        gt=0.0,
        description="TFLOP/s of one worker's device at this precision, for MFU and the estimate "
        "of --dry-run; none takes a known GPU's own figure",
    )
    expected_mfu: float = Field(
        0.4, gt=0.0, le=1.0, description="share of peak_tflops that --dry-run counts on"
    )
    log_every: int = Field(10, ge=1, description="steps between progress lines")
    eval_every: int = Field(100, ge=1, description="steps between validations; the end is always")
    checkpoint_every: int = Field(
        100, ge=1, description="steps between checkpoints; the end is always"
    )
    keep_last: int = Field(
        2, ge=2, description="checkpoints kept; two, so that a damaged one has a predecessor"
    )
    keep_best: bool = Field(
        True,
        description="also save, and keep, the checkpoint with the fewest bits per byte on held-out "
        "text; best.json names it",
    )
    samples: SamplesConfig = Field(SamplesConfig(), description="texts written at validations")
    trackers: TrackersConfig = Field(TrackersConfig(), description="further homes of the metrics")
    model: ModelConfig = Field(
        ModelConfig(), description="the model; vocab_size is set from the tokenizer"
    )
    data: DataConfig = Field(
        DataConfig(builtin_levels=(1,)), description="training text and tokenizer"
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="learning rates")
    workers: WorkersConfig = Field(WorkersConfig(), description="Ray Train workers")
    ray: RaySettings = Field(RaySettings(), description="where Ray runs")

    @model_validator(mode="before")
    @classmethod
    def _apply_depth(cls, values: Any) -> Any:
        depth = values.get("depth") if isinstance(values, dict) else None
        if type(depth) is not int or depth < 1:  # its own check says so
            return values
        model = values.get("model", {})
        model = model.model_dump() if isinstance(model, ModelConfig) else model
        for name in ("d_mlp", "d_head", "n_kv_heads"):
            if isinstance(model, dict) and model.get(name) is not None:
                raise ValueError(
                    f"depth is {depth}, but model.{name} is {model[name]}, of another width: give "
                    f"the sizes of model instead, or leave {name} out"
                )
        heads = math.ceil(depth * 64 / HEAD_CHANNELS)
        sizes = {"n_layers": depth, "d_model": heads * HEAD_CHANNELS, "n_heads": heads}
        return {**values, "model": {**model, **sizes}} if isinstance(model, dict) else values

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(
                "a name has letters, digits, '.', '_' and '-', a letter or digit first"
            )
        return name

    @field_validator("storage", "init_from")
    @classmethod
    def _make_absolute(cls, path: str | None) -> str | None:
        return absolute(path)

    @model_validator(mode="after")
    def _check_batch(self) -> TrainConfig:
        context, workers = self.context, self.workers.num_workers
        forward = self.device_batch * context * workers
        if self.total_batch_tokens % forward:
            raise ValueError(
                f"total_batch_tokens {self.total_batch_tokens} is not a multiple of {forward} = "
                f"device_batch {self.device_batch} x sequence length {context} x "
                f"workers.num_workers {workers}"
            )
        return self

    @model_validator(mode="after")
    def _check_start(self) -> TrainConfig:
        if self.init_from is not None and self.sequence_length is None:
            raise ValueError("init_from needs sequence_length, for example 512")
        if self.init_from is None and self.trained != "all":
            raise ValueError(f"trained is {self.trained!r}; it needs a model in init_from")
        if self.init_from is not None and self.depth is not None:
            raise ValueError(f"depth is {self.depth}; init_from brings its own model")
        return self

    @model_validator(mode="after")
    def _check_gates(self) -> TrainConfig:
        """What can be checked without the model of `init_from` and without the rows."""
        if self.init_from is not None:
            return self
        check_behaviours(self.behaviours, self.model.n_layers)
        names = self.data.builtin_behaviours
        if self.data.style_words:
            return self
        if (gateless := self.model.gateless) is not None and (self.behaviours or names):
            field = "behaviours" if self.behaviours else "data.builtin_behaviours"
            raise ValueError(
                f"{field} has {', '.join(self.behaviours or names)}, but the model is {gateless} "
                f"and has no gates; data.style_words: true writes names of behaviours as "
                f"words behind the questions"
            )
        known = {**self.model.behaviours, **self.behaviours}
        for name in names:
            if name not in known:
                raise ValueError(
                    f"data.builtin_behaviours has {name!r}; the names in behaviours are "
                    f"{', '.join(known) or 'none'}"
                )
        return self

    @property
    def context(self) -> int:
        """Tokens of a training sequence."""
        return self.model.max_seq_len if self.sequence_length is None else self.sequence_length

    @property
    def batch_sequences(self) -> int:
        """Sequences of one optimizer step, all workers together."""
        return self.total_batch_tokens // self.context

    def lr_multiplier(self, step: int) -> float:
        """What multiplies every learning rate in step 1, 2, ..., `steps`; in (0, 1]."""
        rise = 1.0 if step >= self.warmup_steps else step / self.warmup_steps
        warmdown = self.warmdown_share * self.steps
        left = self.steps - step + 1
        return min(rise, left / warmdown if left < warmdown else 1.0)
