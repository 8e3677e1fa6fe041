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

from mhc_model.errors import MHCError
from train.config import TrainConfig
from train.loop import ProcessGroup, Trainer, make_deterministic
from train.records import RunDirectory, step_name


def failure_file(rank: int) -> str:
    """Where in the run's directory a worker says why starting it again is of no use."""
    return f"failure-{rank}.txt"


def train_worker(arguments: dict[str, Any]) -> None:
    """Trains; Ray Train has initialised torch's process group.

    Ray Train starts workers again after any error. After one of ours they would only fail again,
    so they end at once, and the driver says what `failure_file` holds.

    Args:
        arguments: `config`, the TrainConfig, and `corpus`, an object reference to the Corpus.

    Raises:
        MHCError: if the run cannot go on.
    """
    config: TrainConfig = arguments["config"]
    run = RunDirectory(config.storage, config.name)
    ranks = range(config.workers.num_workers)
    if any(run.read_text(failure_file(rank)) is not None for rank in ranks):
        return
    try:
        _train(config, run, arguments["corpus"])
    except MHCError as error:
        run.write_text(failure_file(ray.train.get_context().get_world_rank()), str(error))
        raise


def _train(config: TrainConfig, run: RunDirectory, reference: ray.ObjectRef) -> None:
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
    corpus = ray.get(reference)
    trainer = Trainer(config, corpus, run, group)
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
