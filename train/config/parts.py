"""What a run has besides data and model: optimizer, workers, samples, trackers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mhc_model.settings import Settings


class OptimizerConfig(Settings):
    """Learning rates by kind of parameter; warmup and warmdown multiply all of them."""

    hidden: Literal["muon", "adamw"] = Field(
        "muon", description="optimizer of the matrices of attention and mlp; the rest has AdamW"
    )
    lr: float = Field(
        0.01,
        gt=0.0,
        description="learning rate of those matrices; Muon's update is scaled to the size of "
        "AdamW's (arXiv:2502.16982)",
    )
    embedding_lr: float = Field(
        0.02, gt=0.0, description="learning rate of token and position embedding"
    )
    head_lr: float = Field(0.004, gt=0.0, description="learning rate of the output head")
    norm_lr: float = Field(
        0.01,
        gt=0.0,
        description="learning rate of norms and biases, where the model has them; they have no "
        "weight decay",
    )
    mhc_lr: float = Field(
        0.01,
        gt=0.0,
        description="learning rate of hyper-connections, stream embedding and gates; they have no "
        "weight decay",
    )
    weight_decay: float = Field(
        0.0, ge=0.0, description="decoupled weight decay of the matrices of attention and mlp"
    )
    momentum: float = Field(0.95, ge=0.0, lt=1.0, description="Muon's momentum")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW's decay of the first moment")
    beta2: float = Field(0.95, ge=0.0, lt=1.0, description="AdamW's decay of the second moment")
    eps: float = Field(1e-10, gt=0.0, description="AdamW's epsilon")
    gradient_clip: float | None = Field(
        1.0, gt=0.0, description="largest norm of the whole gradient; none does not clip"
    )


class WorkersConfig(Settings):
    """The Ray Train workers: one process of data-parallel training each."""

    num_workers: int = Field(2, ge=1, description="processes; a GPU each with use_gpu")
    use_gpu: bool = Field(False, description="train on GPUs with NCCL; otherwise on CPUs with gloo")
    cpus_per_worker: float = Field(
        1.0, gt=0.0, description="logical CPUs that each worker reserves"
    )
    threads_per_worker: int = Field(1, ge=1, description="torch threads of each worker")
    max_failures: int = Field(
        3, ge=0, description="times that dead workers are replaced from the last checkpoint"
    )


class SamplesConfig(Settings):
    """Texts that the model continues at every validation, for a person to read."""

    prompts: tuple[str, ...] = Field((), description="beginnings of texts; none writes nothing")
    max_tokens: int = Field(32, ge=1, description="tokens that follow each, chosen greedily")


class TrackersConfig(Settings):
    """Services that get the metrics beside metrics.jsonl and TensorBoard, which always do."""

    wandb: bool = Field(False, description="Weights & Biases; needs the extra 'wandb'")
    mlflow: bool = Field(
        False, description="MLflow at MLFLOW_TRACKING_URI; needs the extra 'mlflow'"
    )
    project: str = Field("mhc-gates", description="project (W&B) or experiment (MLflow)")
