"""What Ray Train runs in each worker process."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from train.config import TrainConfig
from train.hardware import make_deterministic
from train.loop import Trainer
from train.process_group import ProcessGroup
from train.run_directory import RunDirectory, step_name


def train_worker(arguments: dict[str, Any]) -> None:
    """Trains; Ray Train has initialised torch's process group.

    Args:
        arguments: `config`, the TrainConfig, and `corpus`, an object reference to the Corpus.
    """
    config: TrainConfig = arguments["config"]
    # Ray Train logs every report with all its metrics at level INFO.
    logging.getLogger().setLevel(logging.WARNING)
    if config.deterministic:
        make_deterministic()
    torch.set_num_threads(config.workers.threads_per_worker)
    context = ray.train.get_context()
    group = ProcessGroup(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )
    print(
        f"worker {group.rank} of {group.size} on {socket.gethostname()}, process {os.getpid()}, "
        f"{group.device}",
        flush=True,
    )
    corpus = ray.get(arguments["corpus"])
    trainer = Trainer(config, corpus, RunDirectory(config.storage, config.name), group)
    trainer.resume()
    if group.is_first:
        kind = "plain" if config.model.mhc is None else "mHC"
        print(
            f"{kind} model of {trainer.decoder.count_parameters():,} parameters, "
            f"{trainer.decoder.estimate_flops(config.context):,} FLOPs per token"
            + (f"; resuming after step {trainer.step}" if trainer.step else ""),
            flush=True,
        )
    trainer.fit(_persist)


def _persist(step: int, metrics: dict[str, Any], directory: Path | None) -> None:
    checkpoint = None if directory is None else ray.train.Checkpoint.from_directory(directory)
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=step_name(step))
