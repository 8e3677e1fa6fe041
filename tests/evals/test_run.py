"""The evaluation command and the side-by-side table, on real checkpoints of tiny random models."""

from __future__ import annotations

import gzip
import json
import re

import pytest
import torch

from evals.run import main
from evals.tasks.bits_per_byte import bits_per_byte
from evals.tasks.gsm8k_pure import document, load_problems
from mhc_model.checkpoint import load_checkpoint
from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy


@pytest.fixture(scope="module")
def outs(evaluate):
    """plain, mHC with learned gates, mHC with closed gates."""
    return [evaluate("plain"), evaluate("mhc"), evaluate("mhc", "--gates", "0")]


def results_of(out):
    return json.loads((out / "results.json").read_text())


def samples_of(out, task=None):
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return [row for row in rows if task in (None, row["task"])]


def test_results_say_what_was_measured_and_samples_bear_it_out(outs, checkpoints):
    results, samples = results_of(outs[2]), samples_of(outs[2], "gsm8k")
    assert results["checkpoint"]["content_hash"] == checkpoints[1]["mhc"]
    assert results["gates"] == {"description": "0", "mean": [0.0] * 4}
    assert {"torch", "python"} <= results["versions"].keys()
    task = results["tasks"]["gsm8k"]
    assert (task["n"], task["n_shot"], task["max_tokens"]) == (8, 0, 8)
    for extraction in ("strict", "flexible"):
        assert task[extraction]["correct"] == sum(sample[extraction] for sample in samples)
        low, high = task[extraction]["wilson_95"]
        assert low <= task[extraction]["accuracy"] <= high
    assert [s["id"] for s in samples] == [p.id for p in load_problems("builtin:1", limit=8)]
    assert all(s["gates"] == [0.0] * 4 for s in samples)
    assert results["tasks"]["bpb"]["documents"] == 8
    assert {path.name for path in outs[2].iterdir()} == {
        "results.json",
        "samples.jsonl",
        "run.json",
    }
    assert set(results["measured"]["tasks"]) == {"gsm8k", "bpb"}
    assert results["machine"]["device"] == "cpu"


def test_gates_reach_the_model(outs):
    plain, learned, closed = (results_of(out)["tasks"]["bpb"]["bits_per_byte"] for out in outs)
    assert len({plain, learned, closed}) == 3
    assert results_of(outs[0])["gates"]["description"] == "none: a plain model"


def test_gates_file_and_list_equal_the_number(evaluate, outs, tmp_path):
    file = tmp_path / "gates.json"
    file.write_text("[0, 0]")
    for argument in (str(file), "0,0,0,0"):
        out = evaluate("mhc", "--gates", argument)
        assert samples_of(out) == samples_of(outs[2])


def test_bpb_reads_text_files(evaluate, outs, tmp_path):
    text = "\n".join(document(p) for p in load_problems("builtin:2", limit=3))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")]
    bpb = results_of(evaluate("mhc", "--tasks", "bpb", "--text", *files))["tasks"]["bpb"]
    assert (bpb["documents"], bpb["bytes"]) == (2, 2 * len(text.encode()))
    alone = results_of(evaluate("mhc", "--tasks", "bpb", "--text", files[0]))["tasks"]["bpb"]
    assert bpb["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-6)


def test_eight_shots_that_do_not_fit_are_reported(evaluate, capsys):
    out = evaluate("mhc", "--tasks", "gsm8k_8shot")
    task = results_of(out)["tasks"]["gsm8k_8shot"]
    assert (task["n_shot"], task["too_long"], task["strict"]["correct"]) == (8, 8, 0)
    assert samples_of(out)[0]["prompt"].count("Question:") == 9
    assert "8 of 8 prompts do not fit the context and count as wrong" in capsys.readouterr().out


@pytest.fixture
def save_policy(checkpoints, tmp_path):
    """Saves an untrained policy for the mHC checkpoint; fields of its configuration can differ."""

    def save(**changes) -> GatePolicy:
        fields = {"action_space": "per_layer", "n_layers": 2, "observation_dim": 32}
        torch.manual_seed(0)
        policy = GatePolicy(
            PolicyConfig(**{**fields, "checkpoint_hash": checkpoints[1]["mhc"], **changes})
        )
        torch.nn.init.normal_(policy.head.weight)  # so that every prompt gets its own gates
        policy.save(tmp_path / "policy")
        return policy

    return save


def test_policy_sets_the_gates_of_each_problem(
    checkpoints, evaluate, save_policy, tmp_path, tokenizer
):
    policy = save_policy()
    out = evaluate("mhc", "--gates", f"policy:{tmp_path / 'policy'}")
    model = load_checkpoint(checkpoints[0] / "mhc").model
    prompts = [tokenizer.encode(sample["prompt"], bos=True) for sample in samples_of(out, "gsm8k")]
    with torch.no_grad():
        mean = [model.embedding(torch.tensor(tokens)).mean(0) for tokens in prompts]
        expected = policy(torch.stack(mean)).repeat_interleave(2, dim=1)
    gates = torch.tensor([sample["gates"] for sample in samples_of(out, "gsm8k")])
    torch.testing.assert_close(gates, expected, atol=1e-5, rtol=0)
    assert gates.std(dim=0).min() > 1e-4
    described = results_of(out)["gates"]
    assert described["description"].startswith("policy:")
    assert described["mean"] == pytest.approx(expected.mean(0).tolist(), abs=1e-4)
    documents = [document(p) for p in load_problems("builtin:1", limit=8)]
    assert results_of(out)["tasks"]["bpb"]["bits_per_byte"] == pytest.approx(
        bits_per_byte(model, tokenizer, documents, expected), abs=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "name", "arguments", "message"),
    [
        ({"checkpoint_hash": "0" * 64}, "mhc", [], "was trained on checkpoint 000"),
        ({"n_layers": 3, "checkpoint_hash": None}, "mhc", [], "is for 3 layers of width 32"),
        ({}, "plain", [], "this model is plain"),
        ({}, "mhc", ["--tasks", "bpb", "--text", __file__], "--text has none"),
    ],
)
def test_policy_that_does_not_fit(
    checkpoints, save_policy, tmp_path, capsys, changes, name, arguments, message
):
    save_policy(**changes)
    line = ["--checkpoint", str(checkpoints[0] / name), "--out", str(tmp_path / "out")]
    line += ["--gates", f"policy:{tmp_path / 'policy'}", "--limit", "2", *arguments]
    assert main(line) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mhc", ["--gates", "policy:nowhere"], "nowhere is no policy directory"),
        ("mhc", ["--gates", "1.1"], r"gate 0 is 1\.1; allowed: .*\[0, 1\]"),
        ("mhc", ["--gates", "0,1,0"], "3 gates given; allowed"),
        ("mhc", ["--gates", "high"], "gates are 'high'; accepted: learned"),
        ("mhc", ["--gates", "none.json"], "none.json cannot be read"),
        ("plain", ["--gates", "1"], "this model is plain"),
        ("absent", [], "absent is not a directory"),
        ("mhc", ["--data", "absent.jsonl"], "no problems at 'absent.jsonl'; accepted"),
        ("mhc", ["--text", "absent.txt"], r"text file absent\.txt cannot be read"),
    ],
)
def test_errors_of_the_command(checkpoints, tmp_path, capsys, name, arguments, message):
    line = ["--checkpoint", str(checkpoints[0] / name), "--out", str(tmp_path / "out")]
    line += ["--tasks", "gsm8k", "bpb", "--limit", "2", "--max-tokens", "2"]
    assert main([*line, *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search("error: .*" + message, error), error
    assert not (tmp_path / "out").exists()


def test_shots_of_a_single_file_have_to_be_named(checkpoints, tmp_path, capsys):
    file = tmp_path / "p.jsonl"
    file.write_text('{"question": "q", "answer": "#### 1"}\n')
    line = ["--checkpoint", str(checkpoints[0] / "mhc"), "--out", str(tmp_path / "out")]
    line += ["--tasks", "gsm8k_8shot", "--data", str(file)]
    assert main(line) == 2
    assert "--shots-data" in capsys.readouterr().err
    assert main([*line, "--shots-data", str(file)]) == 2
    assert "has 1 worked examples; 8 are needed" in capsys.readouterr().err
