"""Answers to held-out problems that are there, or were cut off."""

from __future__ import annotations

from rl.ablate.held_out import is_tested


def test_an_answer_that_was_cut_off_is_asked_again(findings):
    study = findings.study
    learned = study.arms()[0]
    samples = study.path(learned) / "samples.jsonl"
    samples.write_text('{"id": 0}\n' * 7 + '{"id')
    assert not is_tested(study, learned)
    samples.write_text('{"id": 0}\n' * 8)
    assert is_tested(study, learned)
