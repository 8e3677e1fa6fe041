"""`python -m train.prepare`: options that do not fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from train.prepare import PrepareConfig
from train.prepare.__main__ import main

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("missing", ["nowhere/missing.tsv", "here/missing.log", "a/b/c"])
def test_a_file_that_is_not_there_is_no_data_set(tmp_path, monkeypatch, capsys, missing):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(SystemExit):
        main(["--source", missing, "--out", "out"])
    assert f"{missing!r} is no file or directory here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert PrepareConfig(source=("someone/texts-v1.5",), out="out").is_data_set


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "no/such.jsonl"], "'no/such.jsonl' is no file or directory here"),
        (["--source", "nosuch"], "'nosuch' is no file or directory here"),
        (["--source", __file__, __file__], "twice"),
        (["--source", __file__, str(ROOT)], "give one data set, or files"),
        (["--source", __file__, "--subset", "x"], "subset is 'x', but the source is files"),
        (["--source", __file__, "--validation-share", "0.9"], "0.9"),
        (["--source", __file__, "--tokenizer", "no/such"], "'no/such' does not exist"),
        (["--source", __file__, "--out", "none://x"], "'none://x' cannot be used"),
        (["--source", __file__, "--out", "/dev/null/x"], "'/dev/null/x' cannot be written"),
    ],
)
def test_wrong_options_say_what_is_wrong(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):  # the command sets them
        monkeypatch.setenv(name, os.environ.get(name, "disabled"))
    out = [] if "--out" in arguments else ["--out", "out"]
    try:
        status = main([*arguments, *out])
    except SystemExit as stop:  # the command line's own errors
        status = stop.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
