"""Results side by side: pairs by problem, corrected tests, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evals.compare import compare
from evals.compare import main as compare_main
from evals.results import read_results, read_samples
from evals.statistics import (
    holm,
    mcnemar_exact,
    minimal_detectable_effect,
    paired_bootstrap,
    paired_permutation,
)
from mhc_model.errors import ConfigError

FIRST, SECOND = [True] * 5 + [False] * 3, [False] * 4 + [True] * 3 + [False]


@pytest.fixture(scope="module")
def outs(evaluate):
    """plain; mHC with learned gates and with closed ones, with outcomes of our own."""
    outs = [evaluate("plain"), evaluate("mhc"), evaluate("mhc", "--gates", "0")]
    for out, solved in zip(outs, (FIRST, FIRST, SECOND), strict=True):
        rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
        own = [row for row in rows if row["task"] == "gsm8k"]
        for row, strict in zip(own, solved, strict=True):
            row["strict"] = strict
        rows = rows[::-1] if out is outs[2] else rows  # another order of lines
        (out / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return outs


def test_pairs_are_by_id_and_p_values_corrected(outs):
    found = compare([outs[1], outs[2] / "results.json"], ["A", "B"])
    strict, flexible, tokens, bits = found.tests
    test = mcnemar_exact(FIRST, SECOND)
    assert (strict.task, strict.metric, strict.first, strict.second) == (
        "gsm8k",
        "strict",
        "A",
        "B",
    )
    assert strict.mcnemar == test == (4, 2, test.p_value)
    assert strict.difference.value == pytest.approx(-2 / 8)
    low, high = strict.difference.interval
    assert low < -2 / 8 < high
    assert strict.detectable == pytest.approx(minimal_detectable_effect(8, 6 / 8))
    own = (strict, flexible, tokens)
    corrected = holm([strict.mcnemar.p_value, flexible.mcnemar.p_value, tokens.permutation_p])
    assert [test.holm_p for test in own] == corrected
    assert (bits.task, bits.mcnemar, bits.holm_p) == ("bpb", None, None)
    runs = [run["tasks"]["bpb"]["bits_per_byte"] for run in found.runs]
    assert bits.difference.value == pytest.approx(runs[1] - runs[0], abs=1e-9)
    assert bits.difference.interval.low <= bits.difference.value <= bits.difference.interval.high


def test_all_pairs_and_the_tables(outs):
    found = compare(outs, ["baseline", "learned", "closed"])
    pairs = [(t.first, t.second) for t in found.tests if t.metric == "strict"]
    assert pairs == [("baseline", "learned"), ("baseline", "closed"), ("learned", "closed")]
    assert found.values_table().splitlines()[0].count("|") == 5
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in found.tests_table().splitlines()
    ]
    assert rows[3][:2] == ["gsm8k strict", "closed - baseline"]
    assert rows[3][3] == "2, 4"
    # Nobody won or lost: nothing to detect.
    assert rows[2][2:] == ["+0.0 [+0.0, +0.0]", "0, 0", "1", "1", ""]
    assert compare(outs, seed=0).tests == compare(outs, seed=0).tests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "7"], "number of problems: 8 and 7"),
        (["--seed", "1"], "problems or prompts"),
        (["--max-tokens", "9"], "limit of answer tokens: 8 and 9"),
        (["--tasks", "gsm8k"], "tasks differ: .*bpb"),
    ],
)
def test_what_is_not_comparable_is_refused(evaluate, outs, arguments, message):
    other = evaluate("mhc", *arguments)
    with pytest.raises(ConfigError, match=message):
        compare([outs[0], other])


def test_texts_cut_otherwise_are_not_paired(outs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text((outs[0] / "results.json").read_text())
    rows = [json.loads(line) for line in (outs[0] / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        if row["task"] == "bpb":
            row["bytes"] += 1
    (other / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare([outs[0], other])
    assert "bpb" not in {test.task for test in found.tests}
    assert "other windows" in found.unpaired[0]


def test_command(outs, tmp_path, capsys):
    files = [str(out / "results.json") for out in outs]
    assert compare_main([*files, "--labels", "baseline", "mHC, learned gates", "mHC, RL"]) == 0
    printed = capsys.readouterr().out
    assert "mHC, learned gates" in printed
    assert "p, Holm" in printed
    more = ["--tasks", "gsm8k", "--token-cost", "0.01"]
    assert compare_main([*files, "--labels", "a", "b", "c", *more]) == 0
    printed = capsys.readouterr().out
    assert "gsm8k reward" in printed
    assert "bits per byte" not in printed
    assert compare_main([*files, "--labels", "one"]) == 2
    assert "1 labels for 3 results" in capsys.readouterr().err
    assert compare_main([str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_tokens_and_rewards_are_shown_and_tested(outs):
    found = compare(outs[1:], ["A", "B"], token_cost=0.125, tasks=["gsm8k"])
    tests = {test.metric: test for test in found.tests}
    assert list(tests) == ["strict", "flexible", "tokens per answer", "reward"]
    samples = [{row["id"]: row for row in read_samples(out, "gsm8k")} for out in outs[1:]]
    ids = list(samples[0])
    for metric, value in (
        ("tokens per answer", lambda row: row["tokens"]),
        ("reward", lambda row: row["strict"] - 0.125 * row["tokens"]),
    ):
        columns = [[value(run[i]) for i in ids] for run in samples]
        test, difference = tests[metric], paired_bootstrap(*columns)
        assert (test.difference, test.p_value) == (difference, paired_permutation(*columns))
        assert test.holm_p >= test.p_value
        row = next(row for row in found.rows if row[0] == f"gsm8k {metric}")
        digits = 2 if metric.startswith("tokens") else 4
        shown = [f"{np.mean(column):.{digits}f}" for column in columns]
        assert [cell.split(" [")[0] for cell in row[1:]] == shown
        assert f"{difference.value:+.{digits}f} [" in found.tests_table()
    for out, run in zip(outs[1:], samples, strict=True):
        mean = np.mean([row["tokens"] for row in run.values()])
        assert read_results(out)["tasks"]["gsm8k"]["mean_tokens"] == pytest.approx(mean)
    with pytest.raises(ConfigError, match="A has no arc_easy; its tasks are gsm8k, bpb"):
        compare(outs[1:], ["A", "B"], tasks=["arc_easy"])


def test_words_after_the_questions_are_no_other_problems(evaluate, outs):
    """A plain model is asked in words for what gates say to another: the same problems."""
    asked = [evaluate("plain", "--words", words) for words in ("direct", "worked")]
    entry = read_results(asked[0])["tasks"]["gsm8k"]
    plain = read_results(outs[0])["tasks"]["gsm8k"]
    assert entry["words"] == "direct"
    assert entry["problems_sha256"] == plain["prompts_sha256"] != entry["prompts_sha256"]
    for sample, before in zip(
        read_samples(asked[0], "gsm8k"), read_samples(outs[0], "gsm8k"), strict=True
    ):
        assert sample["prompt"] == before["prompt"].replace("\nAnswer:", " (direct)\nAnswer:")
        assert sample["id"] == before["id"]
    # Documents are scored as they are.
    assert read_samples(asked[0], "bpb") == read_samples(outs[0], "bpb")
    found = compare([outs[1], *asked], ["gates", "direct", "worked"])
    assert ["gsm8k words", "", "direct", "worked"] in found.rows
    assert len([test for test in found.tests if test.metric == "strict"]) == 3
