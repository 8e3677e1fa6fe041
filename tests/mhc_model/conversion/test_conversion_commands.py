"""`python -m mhc_model convert`, `validate` and `export`, one after another."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from mhc_model import load_checkpoint
from mhc_model.__main__ import main


def test_a_model_there_and_back(theirs, tmp_path, capsys):
    model = theirs("qwen3")
    model.save_pretrained(tmp_path / "original")
    original, ours, back = (str(tmp_path / name) for name in ("original", "ours", "back"))
    line = ["convert", "--source", original, "--out", ours, "--streams", "2"]
    assert main([*line, "--max-seq-len", "32", "--dtype", "bfloat16"]) == 0
    assert "2 streams" in capsys.readouterr().out
    config = load_checkpoint(ours).model.config
    assert (config.mhc.n_streams, config.max_seq_len) == (2, 32)
    assert load_checkpoint(ours).model.embedding.weight.dtype == torch.bfloat16
    assert main(line) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0
    options = ["--original", original, "--converted", ours, "--max-new-tokens", "2"]
    assert main(["validate", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("equal at 1e-05")
    assert main(["export", "--checkpoint", ours, "--out", back]) == 0
    assert capsys.readouterr().out == f"{back}: for Qwen3ForCausalLM\n"
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in written.items())


def test_another_model_is_told(theirs, tmp_path, capsys):
    for seed in (0, 1):
        theirs("qwen3", seed).save_pretrained(tmp_path / f"{seed}")
    assert main(["convert", "--source", str(tmp_path / "0"), "--out", str(tmp_path / "ours")]) == 0
    line = ["validate", "--original", str(tmp_path / "1"), "--converted", str(tmp_path / "ours")]
    assert main([*line, "--max-new-tokens", "0"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
