"""`python -m mhc_model generate`: answers in columns."""

from __future__ import annotations

import re

from mhc_model import Engine, Request, SamplingParams
from mhc_model.__main__ import main
from mhc_model.commands.generate import PROMPT, columns


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
