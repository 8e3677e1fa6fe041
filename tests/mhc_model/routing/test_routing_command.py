"""The commands inspect and generate, and the pictures made of characters."""

from __future__ import annotations

import re

import pytest
import torch

from mhc_model.__main__ import main
from mhc_model.checkpoint import save_checkpoint
from mhc_model.engine import Engine, Request, SamplingParams
from mhc_model.generation import PROMPT, columns
from mhc_model.routing import bars, heatmap, plot, watch_routing
from mhc_model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tiny_model):
    """Directories `mhc` and `plain`."""
    root = tmp_path_factory.mktemp("inspected")
    tokenizer = Tokenizer.train([PROMPT * 20], 280)
    for name in ("mhc", "plain"):
        fields = {"vocab_size": tokenizer.vocab_size, "n_layers": 2, "max_seq_len": 256}
        save_checkpoint(root / name, tiny_model(plain=name == "plain", **fields), tokenizer)
    return root


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


def test_generate_puts_answers_beside_each_other(checkpoints, capsys):
    paths = [str(checkpoints / name) for name in ("plain", "mhc")]
    line = ["generate", *paths, "--gates", "0", "1", "--max-tokens", "6", "--width", "200"]
    assert main([*line, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    rule = next(line for line in printed.splitlines() if line.startswith("---"))
    assert len(rule.split(" | ")) == 3
    shown = re.findall(r"log-probability (-[0-9.]+)", printed)
    engine = Engine.from_checkpoint(paths[1], device="cpu")
    prompt = engine.tokenizer.encode(PROMPT, bos=True)
    sampling = SamplingParams(max_tokens=6, logprobs=True)
    for gates in (0, 1):
        (answer,) = engine.generate([Request(prompt, gates, sampling)])
        assert any(abs(float(one) - sum(answer.logprobs)) < 1e-3 for one in shown)


def test_columns_wrap_and_align():
    text = columns({"a": "one two three four", "a longer label than a": "5"}, 40)
    rows = [[cell.strip() for cell in row.split(" | ")] for row in text.splitlines()]
    assert rows[2] == ["-" * 18, "-" * 18]
    assert rows[3:] == [["one two three four", "5"]]


def test_pictures_of_characters():
    assert heatmap([[0.0, 1.0], [2.0, 0.1]]) == "|  @@|\n|@@..|"
    assert heatmap([[1.0]], 0.0, 2.0, ["x"]).startswith("x |")
    assert bars({"a": 1.0, "bb": 0.5}, width=4) == "a  |####| 1\nbb |##  | 0.5"
    drawn = plot({"up": [(0, 0), (1, 1)], "down": [(0, 1), (1, 0)]}, width=3, height=3)
    assert [line[2:] for line in drawn.splitlines()[:3]] == ["|x o", "|   ", "|o x"]
    assert drawn.endswith("o up   x down")
    assert plot({"flat": [(0.0, 2.0)]}, 4, 2)  # no span in either direction
