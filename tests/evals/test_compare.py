"""Results side by side: pairs by problem, corrected tests, refusals."""

from __future__ import annotations

import json

import pytest

from evals.compare import Test as PairedTest
from evals.compare import compare, corrected, mean_test
from evals.compare import main as compare_main
from evals.compare import tests_rows as rows_of
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
    strict, flexible, bits = found.tests
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
    corrected = holm([strict.mcnemar.p_value, flexible.mcnemar.p_value])
    assert [strict.holm_p, flexible.holm_p] == corrected
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
    assert compare_main([*files, "--labels", "one"]) == 2
    assert "1 labels for 3 results" in capsys.readouterr().err
    assert compare_main([str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_means_have_a_p_value_and_are_corrected_together():
    first, second = [4.0, 4.0, 40.0, 36.0] * 10, [4.0, 20.0, 44.0, 60.0] * 10
    other = mean_test("held-out", "tokens", ("a", "c"), (first, first[::-1]))
    own = mean_test("held-out", "tokens", ("a", "b"), (first, second))
    assert own.difference == paired_bootstrap(first, second)
    assert own.p_value == paired_permutation(first, second) < 0.001
    bits = PairedTest("bpb", "bits per byte", "a", "b", own.difference)
    done = corrected([own, bits, other])
    assert [test.holm_p for test in done] == [2 * own.p_value, None, other.p_value]
    rows = rows_of(done)[1]
    assert rows[0][:2] == ["held-out tokens", "b - a"]
    assert rows[0][4:6] == [f"{own.p_value:.3g}", f"{2 * own.p_value:.3g}"]
    assert rows[1][4:6] == ["", ""]
