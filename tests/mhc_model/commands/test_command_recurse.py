"""`python -m mhc_model recurse`, as it is called."""

from __future__ import annotations

import gzip
import json

import pytest

from mhc_model import save_checkpoint
from mhc_model.__main__ import main
from mhc_model.tokenizer import Tokenizer

TEXT = "Amber herons wade here. " * 120 + "Rosamund hid the key. " + "Grey herons sleep. " * 120


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_model):
    """A checkpoint, a text and a program in one directory."""
    directory = tmp_path_factory.mktemp("recurse")
    tokenizer = Tokenizer.train([TEXT], 400)
    model = tiny_model(
        vocab_size=tokenizer.vocab_size,
        max_seq_len=512,
        behaviours={"direct": {"gates": [0, 0]}, "worked": {"gates": [1, 1]}},
    )
    save_checkpoint(directory / "model", model, tokenizer)
    with gzip.open(directory / "book.txt.gz", "wt", encoding="utf-8") as file:
        file.write(TEXT)
    (directory / "program.txt").write_text('len(search("Rosamund key", 3))\n')
    return directory


@pytest.fixture
def recurse(files, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        common = ["--checkpoint", str(files / "model"), "--text", str(files / "book.txt.gz")]
        status = main(["recurse", *common, "--device", "cpu", "--max-tokens", "4", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_question_is_answered(recurse):
    status, out, err = recurse("--question", "Where is the key?", "--budget-tokens", "9000")
    assert status == (0 if out.strip() else 1)
    assert "of 9000 tokens" in err


def test_json_has_the_transcript(recurse):
    _, out, _ = recurse("--question", "Where did Rosamund hide it?", "--json-output")
    whole = json.loads(out)
    assert any("Rosamund hid" in hit["text"] for hit in whole["passages"])
    assert whole["transcript"][0]["verb"] == "search"
    assert whole["usage"]["total_tokens"] <= 8192


def test_gates_are_numbers_names_or_two_of_them(recurse):
    given = ["0", "direct", "1", "worked", "direct:worked", "0:1.0", "learned"]
    results = []
    for gates in given:
        _, out, _ = recurse("--question", "Where is it?", "--json-output", "--gates", gates)
        step = next(step for step in json.loads(out)["transcript"] if step["verb"] == "map")
        results.append(json.dumps(step["result"]))
    assert results[0] == results[1]
    assert results[2] == results[3]
    assert results[4] == results[5]
    assert len(set(results)) == 4


def test_a_program_runs(recurse, files):
    status, out, _ = recurse("--program", str(files / "program.txt"))
    assert (status, out.strip()) == (0, "3")


def test_no_answer_is_another_status(recurse):
    status, out, err = recurse("--question", "Where?", "--budget-tokens", "5")
    assert (status, out) == (1, "")
    assert "budget" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "either --question or --program"),
        (
            ("--question", "q", "--endpoint", "http://127.0.0.1:9"),
            "either --checkpoint or --endpoint",
        ),
        (("--question", "q", "--gates", "0.1", "0.2"), "gates"),
        (("--question", "q", "--gates", "loud"), "learned, direct, worked"),
        (("--question", "q", "--gates", "0.5:x y"), "behaviour of the model"),
        (("--program", "/nowhere"), "/nowhere cannot be read"),
        (("--question", "q", "--text", "/nowhere"), "/nowhere cannot be read"),
    ],
)
def test_errors_are_one_line(recurse, arguments, reason):
    status, _, err = recurse(*arguments)
    assert status == 2
    assert reason in err
    assert "Traceback" not in err
