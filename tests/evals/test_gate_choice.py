"""What --gates takes: numbers, a file, a policy; and policies that fit no model or no task."""

from __future__ import annotations

import json
from dataclasses import asdict

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


TASKS = ("gsm8k", "bpb", "arc_easy")


@pytest.fixture(scope="module")
def samples(evaluate, tmp_path_factory):
    """`samples(GATES)`: samples by task and the gates of results.json, of the model with names."""
    root = tmp_path_factory.mktemp("questions")
    (root / "arc_easy").mkdir()
    choices = {"text": ["ice", "steam", "sand"], "label": ["A", "B", "C"]}
    row = {"question": "Which is a gas?", "choices": choices, "answerKey": "B"}
    (root / "arc_easy" / "test.jsonl").write_text(json.dumps(row) + "\n")
    (root / "gsm8k").mkdir()
    rows = [asdict(problem) for problem in load_problems("builtin:1", limit=6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "gsm8k" / "test.jsonl").write_text(text)

    def run(gates: str):
        more = ["--data", str(root), "--tasks", ",".join(TASKS), "--gates", gates]
        out = evaluate("named", *more)
        return {task: read_samples(out, task) for task in TASKS}, read_results(out)

    return run


def test_a_name_equals_its_numbers(samples):
    for name, numbers in (("direct", "0"), ("worked", "0.2,1")):
        named, results = samples(name)
        assert named == samples(numbers)[0]
        expected = [0.0] * 4 if name == "direct" else [0.2, 0.2, 1.0, 1.0]
        assert results["gates"] == {"description": name, "mean": expected}


def test_prompt_and_answer_have_their_own_gates(samples, tmp_path):
    both, results = samples("direct:0.5")
    closed = samples("0")[0]
    assert results["gates"] == {
        "description": "direct:0.5",
        "mean": [0.0] * 4,
        "answer_mean": [0.5] * 4,
    }
    for sample in both["gsm8k"]:
        assert (sample["gates"], sample["answer_gates"]) == ([0.0] * 4, [0.5] * 4)
    assert [s["completion"] for s in both["gsm8k"]] != [s["completion"] for s in closed["gsm8k"]]
    # What is only scored is prompt, from its first token to its last.
    for task in ("bpb", "arc_easy"):
        assert both[task] == closed[task]
        assert results["tasks"][task]["scored_under"] == "the prompt's gates"
    assert "scored_under" not in results["tasks"]["gsm8k"]
    file = tmp_path / "gates.json"
    for content in ('{"prompt": "direct", "answer": [0.5]}', '"direct:0.5"'):
        file.write_text(content)
        assert samples(str(file))[0] == both


def test_gates_of_one_phase_leave_the_learned_ones_to_the_other(samples):
    learned, results = samples("learned")
    mean = results["gates"]["mean"]
    answers, results = samples("learned:worked")
    assert results["gates"]["mean"] == mean
    assert results["gates"]["answer_mean"] == [0.2, 0.2, 1.0, 1.0]
    assert answers["bpb"] == learned["bpb"]
    assert answers["gsm8k"] != learned["gsm8k"]


@pytest.mark.ray
def test_replicas_take_names_and_phases(samples, evaluate, short_directory):
    more = ["--gates", "direct:worked", "--tasks", "gsm8k"]
    alone = evaluate("named", *more)
    ray = ["--replicas", "2", "--ray.num-cpus", "2", "--ray.temp-dir", short_directory]
    assert read_samples(evaluate("named", *more, *ray), "gsm8k") == read_samples(alone, "gsm8k")


def test_numbers_are_part_of_what_a_directory_is_of(evaluate, checkpoints, tmp_path, capsys):
    out = evaluate("named", "--gates", "direct")
    line = ["--checkpoint", str(checkpoints[0] / "named"), "--out", str(out), "--device", "cpu"]
    line += ["--tasks", "gsm8k,bpb", "--limit", "8", "--max-tokens", "8"]
    assert main([*line, "--gates", "direct"]) == 0
    assert main([*line, "--gates", "worked"]) == 2
    assert "gates: 'direct' and 'worked'" in capsys.readouterr().err
    file = tmp_path / "gates.json"
    file.write_text('"loud"')
    line = ["--checkpoint", str(checkpoints[0] / "named"), "--out", str(tmp_path / "out")]
    assert main([*line, "--tasks", "memory", "--gates", str(file)]) == 2
    assert "the names of this model are learned, direct, worked" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


def test_a_policy_for_prompt_and_answer(checkpoints, evaluate, save_policy, tmp_path, tokenizer):
    policy = save_policy(action_space="prompt_and_answer")
    argument = f"policy:{tmp_path / 'policy'}"
    out = evaluate("mhc", "--gates", argument)
    model = load_checkpoint(checkpoints[0] / "mhc").model
    samples = read_samples(out, "gsm8k")
    prompts = [tokenizer.encode(sample["prompt"], bos=True) for sample in samples]
    rows = policy.gates_for_prompts(model, prompts)
    for phase, name, mean in ((0, "gates", "mean"), (1, "answer_gates", "answer_mean")):
        found = torch.tensor([sample[name] for sample in samples])
        torch.testing.assert_close(found, rows[:, phase], atol=1e-6, rtol=0)
        expected = rows[:, phase].mean(0).tolist()
        assert read_results(out)["gates"][mean] == pytest.approx(expected, abs=1e-5)
    documents = [document(p) for p in load_problems("builtin:1", limit=8)]
    assert read_results(out)["tasks"]["bpb"]["bits_per_byte"] == pytest.approx(
        bits_per_byte(model, tokenizer, documents, rows[:, 0]), abs=1e-5
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
