"""What --gates takes: numbers, a file, a policy; and policies that fit no model or no task."""

from __future__ import annotations

import pytest
import torch

from evals.__main__ import main
from evals.problems import load_problems
from evals.results import read_results, read_samples
from evals.tasks import bits_per_byte, document
from mhc_model.checkpoint import load_checkpoint
from mhc_model.config import PolicyConfig
from mhc_model.policy import GatePolicy


def test_gates_file_and_list_equal_the_number(evaluate, tmp_path):
    number = evaluate("mhc", "--gates", "0")
    file = tmp_path / "gates.json"
    file.write_text("[0, 0]")
    for argument in (str(file), "0,0,0,0"):
        out = evaluate("mhc", "--gates", argument)
        for task in ("gsm8k", "bpb"):
            assert read_samples(out, task) == read_samples(number, task)


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
    prompts = [
        tokenizer.encode(sample["prompt"], bos=True) for sample in read_samples(out, "gsm8k")
    ]
    with torch.no_grad():
        mean = [model.embedding(torch.tensor(tokens)).mean(0) for tokens in prompts]
        expected = policy(torch.stack(mean)).repeat_interleave(2, dim=1)
    gates = torch.tensor([sample["gates"] for sample in read_samples(out, "gsm8k")])
    torch.testing.assert_close(gates, expected, atol=1e-5, rtol=0)
    assert gates.std(dim=0).min() > 1e-4
    described = read_results(out)["gates"]
    assert described["description"].startswith("policy:")
    assert described["mean"] == pytest.approx(expected.mean(0).tolist(), abs=1e-4)
    documents = [document(p) for p in load_problems("builtin:1", limit=8)]
    assert read_results(out)["tasks"]["bpb"]["bits_per_byte"] == pytest.approx(
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
