"""One tiny run that the tests of this room share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mhc_model.settings import validate_settings
from train.config import TrainConfig
from train.data import Corpus, prepare_corpus
from train.launch import with_vocabulary
from train.loop import Persist, ProcessGroup, Trainer
from train.records import RunDirectory, step_name

# 16 blocks of 32 tokens a step and 156 blocks in all: an epoch ends within step 10.
TINY = {
    "name": "tiny",
    "steps": 16,
    "warmup_steps": 4,
    "total_batch_tokens": 512,
    "device_batch": 16,
    "gate_noise_share": 0.5,
    "checkpoint_every": 4,
    "eval_every": 8,
    "workers": {"num_workers": 1},
    "data": {
        "builtin_levels": [1],
        "builtin_count": 80,
        "validation_documents": 7,
        "vocab_size": 300,
    },
    "model": {
        "n_layers": 2,
        "n_heads": 2,
        "d_model": 16,
        "max_seq_len": 32,
        "mhc": {"sinkhorn_iters": 3},
    },
}


@pytest.fixture(scope="session")
def tiny_corpus() -> Corpus:
    return prepare_corpus(validate_settings(TrainConfig, TINY, "tiny").data)


@pytest.fixture
def make_config(tmp_path: Path, tiny_corpus: Corpus) -> Callable[..., TrainConfig]:
    return lambda **changes: tiny_config(tiny_corpus, storage=str(tmp_path / "runs"), **changes)


def tiny_config(corpus: Corpus, **changes: object) -> TrainConfig:
    config = validate_settings(TrainConfig, TINY | changes, "tiny")
    return with_vocabulary(config, corpus.tokenizer.vocab_size)


@pytest.fixture(scope="session")
def make_trainer(tiny_corpus: Corpus) -> Callable[[TrainConfig], Trainer]:
    """A worker of one process: the loop as it is, without Ray."""

    def make(config: TrainConfig) -> Trainer:
        run = RunDirectory(config.storage, config.name)
        return Trainer(config, tiny_corpus, run, ProcessGroup())

    return make


@pytest.fixture(scope="session")
def persist_in() -> Callable[[RunDirectory], Persist]:
    """Stores checkpoints by copying them, as Ray Train does."""

    def make(run: RunDirectory) -> Persist:
        def persist(step: int, metrics: dict, directory: Path | None) -> None:
            if directory is not None:
                target = Path(run.path) / step_name(step)
                shutil.copytree(directory, target, dirs_exist_ok=True)

        return persist

    return make


@pytest.fixture(scope="session")
def finished_once(
    tiny_corpus: Corpus,
    make_trainer: Callable[[TrainConfig], Trainer],
    persist_in: Callable[[RunDirectory], Persist],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trainer:
    """A worker that has trained to the end. For reading only."""
    storage = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(tiny_config(tiny_corpus, storage=str(storage)))
    trainer.fit(persist_in(trainer.run))
    return trainer


@pytest.fixture
def finished_copy(finished_once: Trainer, tmp_path: Path) -> TrainConfig:
    """The configuration of a copy of that run, to be damaged."""
    shutil.copytree(finished_once.config.storage, tmp_path / "copy")
    return finished_once.config.model_copy(update={"storage": str(tmp_path / "copy")})
