"""Held-out figures: of all documents, of every gate, and of the routing."""

import math

import pytest
import torch

from evals.tasks import bits_per_byte
from train.loop import ProcessGroup, Validation


def test_validation_equals_bits_per_byte_of_each_gate(finished_once, tiny_corpus):
    trainer = finished_once
    metrics = trainer.evaluate()
    texts = tiny_corpus.validation
    for suffix, gates in {"": None, "_gate_0": 0.0, "_gate_1": 1.0}.items():
        expected = bits_per_byte(trainer.decoder, tiny_corpus.tokenizer, texts, gates)
        assert metrics[f"val_bpb{suffix}"] == pytest.approx(expected, rel=1e-6)
    sizes = [len(text.encode()) for text in texts]
    tokens = [len(tiny_corpus.tokenizer.encode(text)) for text in texts]
    loss = metrics["val_bpb"] * math.log(2) * sum(sizes) / sum(tokens)
    assert metrics["val_loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["gates"] == pytest.approx(trainer.decoder.learned_gates().tolist(), abs=1e-5)


def test_shares_of_the_workers_cover_the_held_out_documents(tiny_corpus):
    parts = [Validation(tiny_corpus, ProcessGroup(rank, 3), 32) for rank in range(3)]
    assert sorted(text for part in parts for text in part.own) == sorted(tiny_corpus.validation)
    assert sum(part.own_bytes for part in parts) == parts[0].all_bytes


def test_validation_logs_the_routing(make_config, make_trainer):
    trainer = make_trainer(make_config())
    metrics = trainer.validation.evaluate(trainer.decoder)
    assert metrics["h_res_drift"] < 1e-6
    with torch.no_grad():
        trainer.decoder.connections()[2].base[8 + 1] += 3.0  # b_res from stream 0 to 1
    moved = trainer.validation.evaluate(trainer.decoder)
    assert moved["h_res_drift"] > 0.01
    assert moved["identity_distance"][2] > metrics["identity_distance"][2] + 0.01
    assert moved["identity_distance"][1] == pytest.approx(metrics["identity_distance"][1], abs=1e-5)
    assert trainer.decoder.watch is None
