"""`python -m mhc_model`: the list of commands."""

from __future__ import annotations

from mhc_model.__main__ import main


def test_commands_are_listed_and_unknown_ones_refused(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "recurse" in capsys.readouterr().out
    assert main(["recurs"]) == 2
    assert "unknown command 'recurs'" in capsys.readouterr().err
