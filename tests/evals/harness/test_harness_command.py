"""lm-evaluation-harness on the same samples: its own model, our adapter, and our tasks agree."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from evals.__main__ import main
from evals.harness import HarnessSettings, local_task, run
from evals.harness.__main__ import main as harness_main
from evals.harness.agreement import agreement
from mhc_model.errors import DataError

# Warnings of the harness and of what it imports are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = ("gsm8k", "gsm8k_8shot", "hellaswag", "arc_easy")
ARC = [
    ("Which is a gas?", ["ice", "steam", "sand", "milk"], list("ABCD"), "B"),
    ("What do plants need?", ["light", "salt", "noise"], list("ABC"), "A"),
    ("2 + 3 is", ["1", "2", "3", "4", "5"], list("12345"), "5"),
    ("Who has 7 apples?", ["Tom", "Anna Lee", "Max", "no one at all"], list("1234"), "1"),
]
SWAG = [
    ("Cooking", "A man  is in a kitchen [title] Soup.", "he Stirs", 0),
    ("Roofing", "Two people stand on a roof.", "they", 3),
    ("Chess", "She moves a pawn.", "", 2),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small files in the three data sets' own formats."""
    root = tmp_path_factory.mktemp("data")
    endings = ["takes the pot.", "eats [step] 12 apples, one by one.", "runs", "has 3 pens"]
    rows = {
        "arc_easy/test": [
            {"question": q, "choices": {"text": t, "label": labels}, "answerKey": key}
            for q, t, labels, key in ARC
        ],
        "hellaswag/validation": [
            {"activity_label": a, "ctx_a": b, "ctx_b": c, "endings": endings, "label": str(d)}
            for a, b, c, d in SWAG
        ],
        "gsm8k/test": [
            {"question": f"Tom has {i} apples. How many?", "answer": f"He has {i}.\n#### {i}"}
            for i in range(3)
        ],
        "gsm8k/train": [
            {"question": f"Anna has {i} pens?", "answer": f"#### 1,{i:03d}"} for i in range(9)
        ],
    }
    for name, own in rows.items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in own))
    return root


@pytest.fixture(scope="module")
def ours(checkpoint, data, tmp_path_factory):
    """Our results, by the gates."""

    def evaluate(gates):
        out = tmp_path_factory.mktemp("ours")
        line = ["--checkpoint", str(checkpoint), "--data", str(data), "--out", str(out)]
        line += ["--tasks", ",".join(TASKS), "--max-tokens", "12", "--device", "cpu"]
        assert main([*line, "--gates", gates]) == 0
        return out

    return {gates: evaluate(gates) for gates in ("learned", "0")}


def settings(checkpoint, data, **changes):
    values = {"checkpoint": str(checkpoint), "data": str(data), "tasks": TASKS, "max_tokens": 12}
    return HarnessSettings(**{**values, "device": "cpu", **changes})


def test_the_harness_own_model_gives_our_samples(checkpoint, data, ours):
    """transformers' forward pass, the harness's tokenisation, prompts, filters and metrics."""
    results = run(settings(checkpoint, data, backend="hf"))
    found = agreement(results, ours["learned"], TASKS)
    assert [(one.task, one.n) for one in found] == list(zip(TASKS, (3, 3, 3, 4), strict=True))
    for one in found:
        assert one.agrees, one.line()
    assert found[2].largest is not None
    assert found[2].largest > 0  # the two really are different computations
    scores = json.loads((ours["learned"] / "results.json").read_text())["tasks"]
    for task in ("hellaswag", "arc_easy"):
        for metric in ("acc", "acc_norm"):
            assert results["results"][task][f"{metric},none"] == scores[task][metric]["accuracy"]


def test_the_adapter_takes_gates(checkpoint, data, ours):
    tasks = ("gsm8k", "arc_easy")
    results = run(settings(checkpoint, data, gates="0", tasks=tasks))
    for one in agreement(results, ours["0"], tasks):
        assert one.agrees, one.line()
    other = agreement(results, ours["learned"], ["arc_easy"])[0]
    assert not other.agrees  # closed gates are another model
    assert other.largest > 1e-3


def test_the_command_says_whether_samples_agree(checkpoint, data, ours, tmp_path, capsys):
    line = ["--checkpoint", str(checkpoint), "--data", str(data), "--tasks", "arc_easy"]
    line += ["--device", "cpu", "--out", str(tmp_path / "h.json")]
    assert harness_main([*line, "--agree", str(ours["learned"])]) == 0
    assert "arc_easy: 4 samples, 0 decided differently" in capsys.readouterr().out
    results = json.loads((tmp_path / "h.json").read_text())
    results["samples"]["arc_easy"].pop()
    with pytest.raises(DataError, match="4 samples here and 3 of the harness"):
        agreement(results, ours["learned"], ["arc_easy"])
    assert harness_main([*line, "--backend", "hf", "--gates", "0"]) == 2
    assert "hf model has no gates" in capsys.readouterr().err


def test_local_tasks_are_the_harness_own(data):
    task = local_task("gsm8k_8shot", str(data))
    assert task.config.num_fewshot == 8
    assert task.VERSION == 3.0
    assert [f["name"] for f in task.config.filter_list] == ["strict-match", "flexible-extract"]
