"""Examples of questions and answers: where they come from, and how sequences hold them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from evals.problems import Problem
from evals.tasks import prompt
from mhc_model import ConfigError, DataError
from mhc_model.settings import load_settings, validate_settings
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig, TrainConfig
from train.data import IGNORED, AnswerBatches, Examples, left_out, pack, prepare_answers, tokenize

CONFIGS = Path(__file__).parents[3] / "configs"
PROBLEMS = [
    Problem("0", "How many?", "Two.\n#### 2"),
    Problem("1", "And now?", "One and one: <<1+1=2>>2.\n#### 2"),
    Problem("2", "Why?", "#### 7"),
]


def test_an_example_is_what_an_engine_reads_and_writes():
    tokenizer = Tokenizer.train([prompt(problem) for problem in PROBLEMS], 270)
    examples = tokenize(PROBLEMS, tokenizer)
    starts = [0, *examples.ends[:-1]]
    for problem, start, end in zip(PROBLEMS, starts, examples.ends, strict=True):
        tokens, learned = examples.tokens[start:end], examples.learned[start:end]
        read = tokenizer.encode(prompt(problem), bos=True)
        assert tokens[~learned].tolist() == read == tokens[: len(read)].tolist()
        assert tokenizer.decode(tokens[learned].tolist()) == f" {problem.answer}"
        assert tokens[-1] == tokenizer.eos_id


def test_sequences_hold_whole_examples_and_learn_answers_only():
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 30, 200)
    ends = np.cumsum(sizes)
    tokens = np.arange(ends[-1], dtype=np.uint32) + 1000
    places = np.concatenate([np.arange(size) for size in sizes])
    examples = Examples(tokens, places >= 1, ends)
    inputs, targets = pack(examples, 24, fill=7)
    assert left_out(examples, 24) == (sizes > 25).sum() > 0
    learned = targets[targets != IGNORED]
    kept = np.repeat(sizes <= 25, sizes)
    assert sorted(learned) == sorted(tokens[kept & examples.learned])
    # A target is the token after its input, and both are of one example.
    pairs = targets != IGNORED
    assert (targets[pairs] - inputs[pairs] == 1).all()
    assert len(inputs) <= 1.1 * tokens[kept].size / 24


@pytest.mark.parametrize(
    ("row", "asked", "given"),
    [
        ({"question": "Q", "answer": "A"}, "Q", "A"),
        ({"instruction": "Add.", "input": "1 1", "output": "2"}, "Add.\n1 1", "2"),
        ({"instruction": "Say it.", "input": "", "output": "it"}, "Say it.", "it"),
        ({"prompt": "P", "completion": "C"}, "P", "C"),
        ({"prompt": "P", "response": "R"}, "P", "R"),
    ],
)
def test_rows_of_instruction_data(tmp_path, row, asked, given):
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        for number in range(200):
            changed = {key: f"{number} {value}" if value else "" for key, value in row.items()}
            file.write(json.dumps(changed) + "\n")
    data = DataConfig(files=(str(tmp_path),), validation_share=0.1, vocab_size=300)
    corpus = prepare_answers(data)
    assert corpus.documents + len(corpus.validation) == 200
    assert 5 < len(corpus.validation) < 40
    number = corpus.validation[0].split()[1]
    expected = asked.replace("\n", f"\n{number} ")
    assert corpus.validation[0] == f"Question: {number} {expected}\nAnswer: {number} {given}"
    assert prepare_answers(data).sha256 == corpus.sha256


def test_a_data_set_of_the_hub_has_its_own_configuration(tmp_path, monkeypatch):
    load = datasets.load_dataset
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def load_local(name: str, *arguments: object, **options: object) -> object:
        return load(str(tmp_path / name), *arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    for name, readme in (
        ("someone/sums", ""),
        ("openai/gsm8k", "configs:\n- config_name: main\n  data_files: train.jsonl"),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "README.md").write_text(f"---\n{readme}\n---\n")
        rows = [json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) for i in range(50)]
        (tmp_path / name / "train.jsonl").write_text("\n".join(rows) + "\n")
        data = DataConfig(files=(name,), validation_share=0.3, vocab_size=300)
        corpus = prepare_answers(data)
        assert corpus.documents + len(corpus.validation) == 50


def test_wrong_rows_and_too_little_data_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Q", "answer": "A"}\n{"text": "no question"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl line 2 has none of 'question' and 'answer'"):
        prepare_answers(DataConfig(files=(str(path),)))
    with pytest.raises(DataError, match=r"no problems at 'nowhere\.jsonl'"):
        prepare_answers(DataConfig(files=("nowhere.jsonl",)))
    with pytest.raises(ConfigError, match=r"data\.shards is /somewhere: shards hold texts"):
        prepare_answers(DataConfig(shards="/somewhere"))
    examples = tokenize(PROBLEMS, Tokenizer.train(["abc"], 257))
    with pytest.raises(DataError, match=r"fill 0 sequences of 8 .*\(3 longer ones are left out\)"):
        AnswerBatches(examples, 8, 1, 0, fill=0)


def test_the_shipped_configuration_learns_answers():
    config = load_settings(TrainConfig, CONFIGS / "finetune_gsm8k.yaml")
    assert config.loss_on == "answers"
    assert config.data.files == ("openai/gsm8k",)
    with pytest.raises(ConfigError, match="depth is 4; init_from brings its own model"):
        validate_settings(TrainConfig, config.model_dump() | {"depth": 4}, "test")
