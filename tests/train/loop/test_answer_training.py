"""Training on answers: the loss of what is learned, and no gradient of what is only read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mhc_model import load_checkpoint
from mhc_model.settings import validate_settings
from train.config import TrainConfig
from train.data import IGNORED, prepare_answers
from train.launch import with_start, with_vocabulary
from train.loop import ProcessGroup, Trainer
from train.records import RunDirectory


def answer_trainer(storage: Path, name: str, **changes: object) -> Trainer:
    """Of a small model from nothing, on built-in problems."""
    values = {
        **{"name": name, "storage": str(storage), "steps": 60, "loss_on": "answers"},
        **{"total_batch_tokens": 1024, "device_batch": 4, "workers": {"num_workers": 1}},
        "model": {"n_layers": 2, "n_heads": 2, "d_model": 32, "max_seq_len": 128},
        "data": {"builtin_levels": [1], "builtin_count": 300, "validation_documents": 9},
        "optimizer": {"hidden": "adamw", "lr": 0.003},
    }
    config = with_start(validate_settings(TrainConfig, values | changes, "test"))
    corpus = prepare_answers(config.data)
    config = with_vocabulary(config, corpus.tokenizer.vocab_size)
    return Trainer(config, corpus, RunDirectory(config.storage, name), ProcessGroup())


def test_the_loss_is_the_mean_over_learned_tokens(tmp_path):
    whole = answer_trainer(tmp_path, "whole", device_batch=8)
    parts = answer_trainer(tmp_path, "parts", device_batch=2)
    inputs, targets = whole.batches.sequences(1, 0, 8)
    assert 0 < (targets == IGNORED).sum() < targets.numel()
    logits = whole.decoder(inputs).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED).item()
    for trainer in (whole, parts):
        rows = [trainer.train_step() for _ in range(2)]
        assert rows[0]["loss"] == pytest.approx(expected, abs=1e-5)
        trainer.rows = rows
    assert whole.rows[0]["grad_norm"] == pytest.approx(parts.rows[0]["grad_norm"], rel=1e-4)


def test_tokens_of_questions_have_no_gradient(tmp_path):
    trainer = answer_trainer(tmp_path, "x", total_batch_tokens=1024, device_batch=8)
    inputs, targets = trainer.batches.sequences(1, 0, 8)
    hidden = trainer.decoder.hidden(inputs)
    hidden.retain_grad()
    logits = trainer.decoder.logits(hidden).flatten(0, 1)
    F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED).backward()
    assert (hidden.grad[targets == IGNORED] == 0).all()
    before = trainer.decoder.head.weight.detach().clone()
    trainer.train_step()
    assert not trainer.decoder.head.weight.equal(before)


def test_it_learns_answers_and_validates_them(tmp_path, persist_in):
    trainer = answer_trainer(tmp_path, "run", eval_every=1000, checkpoint_every=1000)
    before = trainer.evaluate()
    assert before["val_loss"] == pytest.approx(math.log(512), abs=0.3)
    trainer.fit(persist_in(trainer.run))
    after = trainer.evaluate()
    assert after["val_loss"] < 0.6 * before["val_loss"]
    # The figure is the loss of each held-out example alone.
    held_out, nats, count, size = trainer.corpus.held_out, 0.0, 0, 0
    starts = [0, *held_out.ends[:-1]]
    for start, end in zip(starts, held_out.ends, strict=True):
        tokens = torch.tensor(held_out.tokens[start:end].astype(np.int64))
        learned = torch.tensor(held_out.learned[start + 1 : end])
        with torch.no_grad():
            logits = trainer.decoder(tokens[None, :-1])[0]
        nats += F.cross_entropy(logits[learned], tokens[1:][learned], reduction="sum").item()
        count += int(learned.sum())
        size += len(trainer.corpus.tokenizer.decode_bytes(tokens[1:][learned].tolist()))
    # Examples that share a sequence see each other.
    assert after["val_loss"] == pytest.approx(nats / count, rel=0.1)
    assert after["val_bpb"] / after["val_loss"] == pytest.approx(count / size / math.log(2))
    tuned = answer_trainer(
        tmp_path,
        "tuned",
        **{"init_from": trainer.run.path, "model": {}, "sequence_length": 96},
        **{"total_batch_tokens": 768, "steps": 2},
    )
    assert tuned.corpus.tokenizer.vocab_size == trainer.decoder.config.vocab_size
    start = load_checkpoint(trainer.run.path).model.state_dict()
    assert all(value.equal(start[name]) for name, value in tuned.decoder.state_dict().items())
    assert tuned.train_step()["loss"] < 0.7 * before["val_loss"]
