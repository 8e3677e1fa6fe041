"""`python -m mhc_model validate-model`: what passes, and what is found."""

from __future__ import annotations

import pytest
import torch

from mhc_model import save_checkpoint
from mhc_model.__main__ import main


def run(path, capsys):
    status = main(["validate-model", "--checkpoint", str(path)])
    return status, capsys.readouterr()


@pytest.mark.parametrize("name", ["plain", "mhc"])
def test_a_whole_model_passes(checkpoints, name, capsys):
    status, printed = run(checkpoints / name, capsys)
    assert status == 0
    assert "FAILED" not in printed.out
    assert printed.out.count("ok    ") == (6 if name == "plain" else 7)


def test_weights_that_are_not_finite(tiny_model, small_tokenizer, tmp_path, capsys):
    model = tiny_model(vocab_size=small_tokenizer.vocab_size)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    save_checkpoint(tmp_path / "bad", model, small_tokenizer)
    status, printed = run(tmp_path / "bad", capsys)
    assert status == 1
    assert "FAILED weights" in printed.out
    assert "layers.1.mlp.up_proj.weight" in printed.out
    assert "FAILED forward" in printed.out


def test_a_matrix_that_is_not_doubly_stochastic(tiny_model, tmp_path, capsys):
    """Few iterations at a low temperature, once the logits have moved."""
    mhc = {"projection": "iterations", "sinkhorn_iters": 2, "tau": 0.05}
    save_checkpoint(tmp_path / "few", tiny_model(mhc=mhc))
    status, printed = run(tmp_path / "few", capsys)
    assert status == 1
    assert "FAILED H_res" in printed.out
    assert "none: token ids only" in printed.out


def test_a_damaged_file(tiny_model, tmp_path, capsys):
    save_checkpoint(tmp_path / "cut", tiny_model())
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    status, printed = run(tmp_path / "cut", capsys)
    assert status == 2
    assert "model.safetensors" in printed.err
