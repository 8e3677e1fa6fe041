"""A process that is killed, and the same run going on: with one process and with two."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException

from train.config import TrainConfig
from train.data import Corpus, prepare_corpus
from train.loop import ProcessGroup, Trainer, make_deterministic
from train.records import RunDirectory, read_rows, step_name

STEPS, KILLED_AFTER = 16, 9


def work(rank: int, config: TrainConfig, corpus: Corpus, size: int, killed_after: int) -> None:
    """One worker of a run, from its newest checkpoint; rank 0 may die behind a step."""
    torch.set_num_threads(1)
    make_deterministic()
    run = RunDirectory(config.storage, config.name)
    if size > 1:
        store = f"file://{config.storage}/store-{config.name}"
        dist.init_process_group("gloo", store, rank=rank, world_size=size)
    trainer = Trainer(config, corpus, run, ProcessGroup(rank, size))
    trainer.resume()

    def persist(step: int, metrics: dict, directory: Path | None) -> None:
        if directory is not None:
            shutil.copytree(directory, Path(run.path) / step_name(step), dirs_exist_ok=True)

    step_once = trainer.train_step

    def train_step() -> dict:
        if trainer.step == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return step_once()

    trainer.train_step = train_step
    trainer.fit(persist)
    if size > 1:
        dist.destroy_process_group()


def losses(config: TrainConfig) -> list[float]:
    text = Path(config.storage, config.name, "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def train(config: TrainConfig, corpus: Corpus, size: int = 1, killed_after: int = -1) -> None:
    arguments = (config, corpus, size, killed_after)
    torch.multiprocessing.spawn(work, arguments, nprocs=size)


@pytest.fixture(scope="module")
def killed(finished_once, tiny_corpus, tmp_path_factory) -> TrainConfig:
    """The same run, but its process died behind step 9. For copying only."""
    storage = str(tmp_path_factory.mktemp("killed"))
    config = finished_once.config.model_copy(update={"storage": storage})
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        train(config, tiny_corpus, killed_after=KILLED_AFTER)
    assert len(losses(config)) == KILLED_AFTER
    assert RunDirectory(config.storage, config.name).steps() == [4, 8]
    return config


@pytest.mark.parametrize(("size", "tolerance"), [(1, 1e-6), (2, 1e-4)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    killed, finished_once, tiny_corpus, tmp_path, size, tolerance
):
    # The second epoch begins within the steps that follow the kill.
    assert 8 * 16 < finished_once.batches.blocks < STEPS * 16
    shutil.copytree(killed.storage, tmp_path, dirs_exist_ok=True)
    changes = {"storage": str(tmp_path), "device_batch": killed.device_batch // size}
    config = killed.model_copy(update=changes)
    train(config, tiny_corpus, size)
    assert losses(config) == pytest.approx(losses(finished_once.config), abs=tolerance)


def test_behaviours_are_the_same_for_any_number_of_processes(make_config, persist_in):
    # Here: the processes import this module, and need no Ray.
    from train.launch import with_behaviours, with_vocabulary

    data = {"builtin_levels": [1], "builtin_count": 80, "validation_documents": 8}
    data |= {"vocab_size": 300, "builtin_behaviours": ["direct", "worked"]}
    behaviours = {"direct": {"gates": [0.0, 0.3]}, "worked": {"gates": [[0.7, 1.0]] * 4}}
    config = make_config(name="alone", behaviours=behaviours, data=data, steps=6)
    corpus = prepare_corpus(config.data, config.behaviours)
    config = with_behaviours(with_vocabulary(config, corpus.tokenizer.vocab_size), corpus)
    run = RunDirectory(config.storage, config.name)
    Trainer(config, corpus, run, ProcessGroup()).fit(persist_in(run))
    shared = config.model_copy(update={"name": "shared", "device_batch": config.device_batch // 2})
    train(shared, corpus, size=2)
    assert losses(shared) == pytest.approx(losses(config), abs=1e-4)
    last, expected = (
        read_rows(RunDirectory(config.storage, name))[-1] for name in ("shared", "alone")
    )
    for name in ("val_loss", "val_loss.direct", "val_loss.worked", "val_bpb_gate_0"):
        assert last[name] == pytest.approx(expected[name], abs=1e-4)
