"""lm-evaluation-harness on the same samples: its own model, our adapter, and our tasks agree."""

from __future__ import annotations

import json
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the hub
pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from evals.harness.agreement import agreement
from evals.harness.command import GatedLM, HarnessSettings, local_task, run
from evals.harness.command import main as harness_main
from evals.run import main
from mhc_model.checkpoint import save_checkpoint
from mhc_model.errors import ConfigError, DataError, EngineError

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
def checkpoint(tmp_path_factory, make_model, tokenizer):
    directory = tmp_path_factory.mktemp("harness") / "mhc"
    save_checkpoint(directory, make_model(context=512), tokenizer)
    return directory


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


def test_rolling_likelihood_counts_every_token_once(checkpoint, tokenizer):
    import torch
    from lm_eval.api.instance import Instance

    model = GatedLM(str(checkpoint), gates=0.5, batch_size=2, device="cpu")
    engine = model.engine
    texts = ["Tom has 7 apples. " * 60, "Anna", ""]
    found = model.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    )
    tokens = tokenizer.encode(texts[0])
    size = engine.max_seq_len - 1
    assert len(tokens) > size
    expected, gates = 0.0, torch.full((1, 4), 0.5)
    first = [tokenizer.bos_id, *tokens[:size]]
    last = tokens[-size - 1 :]
    for row, scored in ((first, size), (last, len(tokens) - size)):
        with torch.no_grad():
            logprobs = engine.model(torch.tensor([row]), gates)[0].log_softmax(-1)
        for place in range(len(row) - scored, len(row)):
            expected += logprobs[place - 1, row[place]].item()
    assert found[0] == pytest.approx(expected, abs=1e-2)
    assert found[2] == 0.0
    assert found[1] < 0


def test_generation_arguments(checkpoint):
    from lm_eval.api.instance import Instance

    model = GatedLM(str(checkpoint), device="cpu")

    def ask(**arguments):
        return model.generate_until([Instance("generate_until", {}, ("Tom", arguments), 0)])[0]

    whole = ask(until=[], max_gen_toks=8)
    assert whole
    stop = next(letter for letter in whole[::-1] if letter.isascii() and letter.isalpha())
    assert ask(until=[stop], max_gen_toks=8) == whole.split(stop)[0]
    with pytest.raises(ConfigError, match="repetition_penalty"):
        ask(until=[], repetition_penalty=1.2)
    with pytest.raises(EngineError, match="leaves no room"):
        ask(until=[], max_gen_toks=600)


def test_local_tasks_are_the_harness_own(data):
    task = local_task("gsm8k_8shot", str(data))
    assert task.config.num_fewshot == 8
    assert task.VERSION == 3.0
    assert [f["name"] for f in task.config.filter_list] == ["strict-match", "flexible-extract"]
