"""Fine-tuning of a converted model: from its checkpoint, plain or with streams that come to mix."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils import checkpoint as torch_checkpoint

from mhc_model import CheckpointError, ConfigError, Decoder, load_checkpoint
from mhc_model.conversion import convert, export
from mhc_model.settings import validate_settings
from mhc_model.tokenizer import Tokenizer
from train.config import TrainConfig
from train.data import Corpus, prepare_corpus
from train.launch import with_start, with_vocabulary
from train.loop import Persist, ProcessGroup, Trainer, group_parameters
from train.records import RunDirectory

# A Llama with its large epsilon.
LLAMA = {
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_model": 32,
    "max_seq_len": 64,
    "mlp": "swiglu",
    "d_mlp": 64,
    "norm": "rms_weight",
    "norm_eps": 1e-5,
    "embedding_norm": False,
    "qk_norm": "none",
    "softcap": None,
    "tied": True,
}
RUN = {
    "steps": 150,
    "warmup_steps": 10,
    "total_batch_tokens": 512,
    "device_batch": 16,
    "sequence_length": 32,
    "eval_every": 1000,
    "checkpoint_every": 1000,
    "log_every": 1000,
    "workers": {"num_workers": 1},
    "optimizer": {
        "hidden": "adamw",
        "lr": 3e-3,
        "embedding_lr": 3e-3,
        "norm_lr": 3e-3,
        "mhc_lr": 3e-3,
    },
}
DATA = {"builtin_levels": [1], "builtin_count": 3000, "validation_documents": 40, "vocab_size": 300}


def make_trainer(storage: Path, name: str, **fields: object) -> Trainer:
    """What the driver and one worker do, without Ray."""
    values = {**RUN, "storage": str(storage), "name": name, "data": DATA, **fields}
    config = with_start(validate_settings(TrainConfig, values, "test"))
    corpus = prepare_corpus(config.data)
    config = with_vocabulary(config, corpus.tokenizer.vocab_size)
    return Trainer(config, corpus, RunDirectory(config.storage, config.name), ProcessGroup())


def last_row(trainer: Trainer) -> dict[str, float]:
    lines = Path(trainer.run.path, "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def persist(work: Path) -> Callable[[RunDirectory], Persist]:
    def make(run: RunDirectory) -> Persist:
        def store(step: int, metrics: dict, directory: Path | None) -> None:
            assert directory is not None
            shutil.copytree(directory, Path(run.path) / f"step-{step:06d}", dirs_exist_ok=True)

        return store

    return make


@pytest.fixture(scope="module")
def converted(work: Path, persist: Callable[[RunDirectory], Persist]) -> dict[str, Path]:
    """A pretrained Llama, exported and read back: plain, and with streams."""
    trainer = make_trainer(work, "pretrained", model=LLAMA, steps=200)
    trainer.fit(persist(trainer.run))
    exported = export(trainer.run.path, work / "llama")
    return {
        name: convert(exported, work / name, streams=streams).path
        for name, streams in (("plain", 0), ("mhc", 4))
    }


@pytest.fixture(scope="module")
def tuned(
    work: Path, persist: Callable[[RunDirectory], Persist], converted: dict[str, Path]
) -> dict[str, Trainer]:
    trainers = {}
    for name, path in converted.items():
        trainers[name] = make_trainer(work, f"tuned-{name}", init_from=str(path))
        trainers[name].fit(persist(trainers[name].run))
    return trainers


def test_it_starts_where_the_checkpoint_is(converted: dict[str, Path], tmp_path: Path) -> None:
    before = {}
    for name, path in converted.items():
        trainer = make_trainer(tmp_path, name, init_from=str(path))
        assert trainer.config.model == load_checkpoint(path).model.config
        assert trainer.config.model.max_seq_len == 64
        assert trainer.config.data.tokenizer == str(path)
        before[name] = trainer.evaluate()["val_loss"]
    assert before["mhc"] == pytest.approx(before["plain"], rel=1e-5)
    assert before["plain"] < 0.5 * math.log(300), "it was pretrained"


def test_mixing_learns_and_costs_nothing(tuned: dict[str, Trainer]) -> None:
    plain, mhc = last_row(tuned["plain"]), last_row(tuned["mhc"])
    print(f"plain {plain['val_loss']:.4f}, mHC {mhc['val_loss']:.4f}, {mhc}")
    assert mhc["h_res_drift"] > 1e-3
    assert mhc["stream_similarity"] < 0.999
    assert mhc["val_loss"] <= 1.01 * plain["val_loss"]
    assert mhc["val_loss_gate_0"] != mhc["val_loss_gate_1"]


def test_only_mhc_learns_where_asked(
    work: Path, persist: Callable[[RunDirectory], Persist], converted: dict[str, Path]
) -> None:
    start = load_checkpoint(converted["mhc"]).model.state_dict()
    trainer = make_trainer(
        work,
        "only-mhc",
        init_from=str(converted["mhc"]),
        trained="mhc",
        steps=20,
        optimizer={"mhc_lr": 0.01},
    )
    assert set(group_parameters(trainer.decoder)) == {"mhc"}
    before = trainer.evaluate()["val_loss"]
    trainer.fit(persist(trainer.run))
    for name, value in trainer.decoder.state_dict().items():
        own = "connection." in name or name in ("stream_embedding", "gate_logits")
        assert torch.equal(value, start[name]) is not own, name
    assert last_row(trainer)["val_loss"] < before
    again = make_trainer(
        work,
        "only-mhc",
        init_from=str(converted["mhc"]),
        trained="mhc",
        steps=30,
        optimizer={"mhc_lr": 0.01},
    )
    again.resume()
    assert again.step == 20
    again.train_step()


@pytest.mark.parametrize("name", ["plain", "mhc"])
def test_gradient_checkpointing_changes_memory_only(
    converted: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = torch_checkpoint.checkpoint
    monkeypatch.setattr(
        "mhc_model.decoder.decoder.checkpoint",
        lambda *arguments, **options: calls.append(1) or original(*arguments, **options),
    )
    tokens = torch.randint(290, (2, 20), generator=torch.Generator().manual_seed(0))
    gradients = {}
    for checkpointing in (False, True):
        model: Decoder = load_checkpoint(converted[name]).model
        model.gradient_checkpointing = checkpointing
        model(tokens).logsumexp(-1).sum().backward()
        gradients[checkpointing] = {n: p.grad for n, p in model.named_parameters()}
        assert len(calls) == (2 if checkpointing else 0)
    for parameter, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][parameter], gradient, msg=parameter)
    with torch.no_grad():
        model(tokens)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequence_length": None, "total_batch_tokens": 16384}, "init_from needs sequence_length"),
        (
            {"sequence_length": 128, "total_batch_tokens": 2048},
            "sequence_length is 128; the context .* is 64",
        ),
        ({"model": {"n_layers": 3}}, "brings its own model"),
        ({"trained": "mhc"}, "plain: convert it first"),
        ({"data": {**DATA, "tokenizer": "train", "vocab_size": 280}}, None),
        ({"total_batch_tokens": 500}, "sequence length 32"),
        ({"init_from": None, "trained": "mhc"}, "needs a model in init_from"),
    ],
)
def test_contradictions(
    converted: dict[str, Path], tmp_path: Path, fields: dict[str, object], message: str | None
) -> None:
    values = {"init_from": str(converted["plain"]), **fields}
    if message is None:  # the checkpoint's own tokenizer is taken, not one that is trained
        trainer = make_trainer(tmp_path, "run", **values)
        assert trainer.corpus.tokenizer.vocab_size == trainer.config.model.vocab_size
        return
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path, "run", **values)


def test_another_tokenizer_is_refused(converted: dict[str, Path], tmp_path: Path) -> None:
    Tokenizer.train(["abc abc"], 258).save(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"258 ids.*use the model's tokenizer"):
        make_trainer(
            tmp_path,
            "run",
            init_from=str(converted["plain"]),
            data={**DATA, "tokenizer": str(tmp_path / "other")},
        )
    with pytest.raises(CheckpointError, match="nowhere"):
        make_trainer(tmp_path, "run", init_from=str(tmp_path / "nowhere"))


def test_documents_end_where_the_model_ends_them(converted: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(converted["mhc"])
    tokenizer = checkpoint.tokenizer
    assert tokenizer is not None
    corpus: Corpus = prepare_corpus(
        validate_settings(TrainConfig, {**RUN, "name": "x", "data": DATA}, "test").data.model_copy(
            update={"tokenizer": str(converted["mhc"])}
        )
    )
    assert (corpus.tokens == tokenizer.eos_id).sum() == corpus.documents
