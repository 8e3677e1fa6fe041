"""`python -m mhc_model inspect`: the figures of a checkpoint, in numbers and in characters."""

from __future__ import annotations

import pytest
import torch

from mhc_model import save_checkpoint
from mhc_model.__main__ import main
from mhc_model.engine import Engine
from mhc_model.routing import watch_routing


def test_inspect_shows_what_routing_measures(checkpoints, capsys):
    text = "Tom has 7 apples"
    assert main(["inspect", str(checkpoints / "mhc"), "--text", text, "--gates", "0.5"]) == 0
    printed = capsys.readouterr().out
    engine = Engine.from_checkpoint(checkpoints / "mhc", device="cpu")
    tokens = torch.tensor([engine.tokenizer.encode(text, bos=True)])
    with watch_routing(engine.model) as routing, torch.no_grad():
        engine.model(tokens, torch.full((1, 4), 0.5))
    for name, record in zip(
        ("layer0.attention", "layer0.mlp", "layer1.attention", "layer1.mlp"),
        routing.sublayers(),
        strict=True,
    ):
        line = next(line for line in printed.splitlines() if line.startswith(name))
        gate, distance, similarity = line.split()[1:4]
        assert float(gate) == 0.5
        assert float(distance) == pytest.approx(float(record.identity_distance), abs=1e-3)
        assert float(similarity) == pytest.approx(float(record.similarity), abs=1e-3)


def test_inspect_a_layer(checkpoints, capsys):
    assert main(["inspect", str(checkpoints / "mhc"), "--layer", "1"]) == 0
    printed = capsys.readouterr().out
    assert "layer1.attention: gate" in printed
    assert "layer1.mlp: gate" in printed
    matrix = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    rows = torch.tensor([[float(value) for value in row] for row in matrix])
    assert rows.shape == (8, 4)
    torch.testing.assert_close(rows.sum(1), torch.ones(8), atol=1e-3, rtol=0)
    assert main(["inspect", str(checkpoints / "mhc"), "--layer", "1", "--ascii"]) == 0
    assert capsys.readouterr().out.count("|\n|") == 6
    assert main(["inspect", str(checkpoints / "mhc"), "--ascii"]) == 0
    assert "H_post (0 to 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mhc", "words"),
    [
        ({"projection": "kronecker"}, "H_res by a Kronecker product of 2 x 2 matrices\n"),
        (
            {"projection": "free", "single_pass": True, "collapse": "learned"},
            "H_res by nothing that constrains it, single pass, learned collapse\n",
        ),
        (
            {"projection": "identity", "dynamic": False},
            "H_res by definition the identity, the same for every token\n",
        ),
    ],
)
def test_inspect_names_the_member_of_the_family(tiny_model, tmp_path, capsys, mhc, words):
    save_checkpoint(tmp_path / "model", tiny_model(mhc=mhc))
    assert main(["inspect", str(tmp_path / "model")]) == 0
    assert words in capsys.readouterr().out


def test_inspect_says_what_is_wrong(checkpoints, capsys):
    assert main(["inspect", str(checkpoints / "plain")]) == 0
    assert "plain (mhc: null): one residual stream" in capsys.readouterr().out
    for arguments, message in (
        (["--layer", "2"], "layer is 2; this model has layers 0 to 1"),
        (["--gates", "high"], "gates are 'high'"),
        (["--gates", "0,1,1"], "3 gates given"),
        (["--text", ""], "the text is empty"),
    ):
        assert main(["inspect", str(checkpoints / "mhc"), *arguments]) == 2
        assert message in capsys.readouterr().err
