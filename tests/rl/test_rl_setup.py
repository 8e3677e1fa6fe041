"""What a run refuses before it makes anything."""

from __future__ import annotations

from mhc_model import save_checkpoint
from rl.__main__ import main


def test_a_plain_model_is_refused(arguments, tmp_path, tiny_model, tokenizer, capsys):
    save_checkpoint(
        tmp_path / "plain",
        tiny_model(plain=True, vocab_size=tokenizer.vocab_size),
        tokenizer,
    )
    assert main([*arguments, "--checkpoint", str(tmp_path / "plain")]) == 2
    assert "is plain (mhc: null): it has no gates" in capsys.readouterr().err


def test_what_is_refused_leaves_no_directory(arguments, tmp_path, capsys):
    assert main([*arguments, "--max-tokens", "120"]) == 2
    message = capsys.readouterr().err
    assert "max_tokens 120 exceeds the model's context of 128" in message
    assert main([*arguments, "--data", str(tmp_path / "nothing.jsonl")]) == 2
    assert "nothing.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "tiny").exists(), "the corrected command is not another run"


def test_an_answer_that_cannot_be_scored_is_refused(arguments, capsys):
    """The longest answers of level 4 do not fit beside their questions; they could be answered."""
    values = [*arguments, "--data", "builtin:4", "--max-tokens", "1"]
    assert main([*values, "--reward", "likelihood"]) == 2
    message = capsys.readouterr().err
    assert "exceeds the model's context of 128: its likelihood cannot be scored" in message


def test_an_unknown_behaviour_is_refused(arguments, capsys):
    assert main([*arguments, "--sweep", "0.5", "brief"]) == 2
    assert "gates are 'brief'; the names of this model are learned" in capsys.readouterr().err
