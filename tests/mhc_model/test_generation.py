"""Text from text: in one call, and side by side."""

from __future__ import annotations

import re

import pytest

from mhc_model import Engine, Request, SamplingParams, generate
from mhc_model.__main__ import main
from mhc_model.errors import EngineError, GateError
from mhc_model.generation import PROMPT, columns


def test_it_is_the_engine(checkpoints, small_tokenizer):
    engine = Engine.from_checkpoint(checkpoints / "mhc", device="cpu")
    prompts = ["Question: Tom", "12"]
    rows = small_tokenizer.encode_batch(prompts, bos=True)
    sampling = SamplingParams(max_tokens=7, temperature=1.0, seed=3)
    requests = [Request(row, gates=0.3, sampling=sampling) for row in rows]
    expected = [completion.text for completion in engine.generate(requests)]
    options = {"max_tokens": 7, "temperature": 1.0, "seed": 3}
    assert generate(checkpoints / "mhc", prompts, 0.3, **options) == expected
    assert generate(engine, prompts[0], 0.3, **options) == expected[:1]
    assert generate(engine, prompts, 0.9, **options) != expected


def test_what_is_refused(checkpoints, tiny_model):
    with pytest.raises(EngineError, match="max_token"):
        generate(checkpoints / "mhc", "a", max_token=3)
    with pytest.raises(GateError, match="plain"):
        generate(checkpoints / "plain", "a", 0.5, max_tokens=2)
    with pytest.raises(EngineError, match="no tokenizer"):
        generate(Engine(tiny_model()), "a", max_tokens=2)


# The command


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
