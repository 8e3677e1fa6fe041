"""What a run refuses before it makes anything."""

from __future__ import annotations

from mhc_model import save_checkpoint
from mhc_model.settings import parse_command_line
from rl.__main__ import main
from rl.config import RLConfig
from rl.setup import prepare


def test_a_plain_model_is_refused(arguments, tmp_path, tiny_model, tokenizer, capsys):
    save_checkpoint(
        tmp_path / "plain",
        tiny_model(plain=True, vocab_size=tokenizer.vocab_size),
        tokenizer,
    )
    assert main([*arguments, "--checkpoint", str(tmp_path / "plain")]) == 2
    assert "is plain (mhc: null): it has no gates" in capsys.readouterr().err


def test_gates_that_do_nothing_are_a_control_only_if_asked_for(
    arguments, tmp_path, tiny_model, tokenizer, capsys
):
    mhc = {"projection": "identity"}
    for name, fields in (("refusing", {}), ("accepting", {"gates": "accept"})):
        fields = {"mhc": mhc | fields, "vocab_size": tokenizer.vocab_size, "max_seq_len": 128}
        save_checkpoint(tmp_path / name, tiny_model(**fields), tokenizer)
    assert main([*arguments, "--checkpoint", str(tmp_path / "refusing")]) == 2
    words = "without mixing (mhc.projection: identity; mhc.gates: accept would take gates)"
    assert words in capsys.readouterr().err
    line = [*arguments, "--checkpoint", str(tmp_path / "accepting")]
    config = parse_command_line(RLConfig, "python -m rl", "", line)
    assert prepare(config).checkpoint.model.config.n_gates == 6


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
