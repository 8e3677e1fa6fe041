"""Fine-tuning on answers: what is learned, what is only read, and where examples come from."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from evals.problems.problem import Problem
from evals.tasks.gsm8k_pure import prompt
from mhc_model import ConfigError, DataError, load_checkpoint
from mhc_model.settings import load_settings, validate_settings
from mhc_model.tokenizer import Tokenizer
from train.config import DataConfig, TrainConfig
from train.data import IGNORED, AnswerBatches, Examples, left_out, pack, prepare_answers, tokenize
from train.launch import with_start, with_vocabulary
from train.loop import ProcessGroup, Trainer
from train.records import RunDirectory

CONFIGS = Path(__file__).parents[3] / "configs"
PROBLEMS = [
    Problem("0", "How many?", "Two.\n#### 2"),
    Problem("1", "And now?", "One and one: <<1+1=2>>2.\n#### 2"),
    Problem("2", "Why?", "#### 7"),
]


def answer_trainer(storage: Path, name: str, **changes: object) -> Trainer:
    """Of a small model from nothing, on built-in problems."""
    values = {
        **{"name": name, "storage": str(storage), "steps": 60, "loss_on": "answers"},
        **{"total_batch_tokens": 1024, "device_batch": 4, "workers": {"num_workers": 1}},
        "model": {"n_layers": 2, "n_heads": 2, "d_model": 32, "max_seq_len": 128},
        "data": {"builtin_levels": [1], "builtin_count": 300, "validation_documents": 9},
        "optimizer": {"hidden": "adamw", "lr": 0.003},
    }
    config = with_start(validate_settings(TrainConfig, values | changes, "test"))
    corpus = prepare_answers(config.data)
    config = with_vocabulary(config, corpus.tokenizer.vocab_size)
    return Trainer(config, corpus, RunDirectory(config.storage, name), ProcessGroup())


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


def test_the_loss_is_the_mean_over_learned_tokens(tmp_path):
    whole = answer_trainer(tmp_path, "whole", device_batch=8)
    parts = answer_trainer(tmp_path, "parts", device_batch=2)
    inputs, targets = whole.batches.sequences(1, 0, 8)
    assert 0 < (targets == IGNORED).sum() < targets.numel()
    logits = whole.decoder(inputs).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED).item()
    for trainer in (whole, parts):
        rows = [trainer.train_step() for _ in range(2)]
        assert rows[0]["loss"] == pytest.approx(expected, abs=1e-5)
        trainer.rows = rows
    assert whole.rows[0]["grad_norm"] == pytest.approx(parts.rows[0]["grad_norm"], rel=1e-4)


def test_tokens_of_questions_have_no_gradient(tmp_path):
    trainer = answer_trainer(tmp_path, "x", total_batch_tokens=1024, device_batch=8)
    inputs, targets = trainer.batches.sequences(1, 0, 8)
    hidden = trainer.decoder.hidden(inputs)
    hidden.retain_grad()
    logits = trainer.decoder.logits(hidden).flatten(0, 1)
    F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED).backward()
    assert (hidden.grad[targets == IGNORED] == 0).all()
    before = trainer.decoder.head.weight.detach().clone()
    trainer.train_step()
    assert not trainer.decoder.head.weight.equal(before)


def test_it_learns_answers_and_validates_them(tmp_path, persist_in):
    trainer = answer_trainer(tmp_path, "run", eval_every=1000, checkpoint_every=1000)
    before = trainer.evaluate()
    assert before["val_loss"] == pytest.approx(math.log(512), abs=0.3)
    trainer.fit(persist_in(trainer.run))
    after = trainer.evaluate()
    assert after["val_loss"] < 0.6 * before["val_loss"]
    # The figure is the loss of each held-out example alone.
    held_out, nats, count, size = trainer.corpus.held_out, 0.0, 0, 0
    starts = [0, *held_out.ends[:-1]]
    for start, end in zip(starts, held_out.ends, strict=True):
        tokens = torch.tensor(held_out.tokens[start:end].astype(np.int64))
        learned = torch.tensor(held_out.learned[start + 1 : end])
        with torch.no_grad():
            logits = trainer.decoder(tokens[None, :-1])[0]
        nats += F.cross_entropy(logits[learned], tokens[1:][learned], reduction="sum").item()
        count += int(learned.sum())
        size += len(trainer.corpus.tokenizer.decode_bytes(tokens[1:][learned].tolist()))
    # Examples that share a sequence see each other.
    assert after["val_loss"] == pytest.approx(nats / count, rel=0.1)
    assert after["val_bpb"] / after["val_loss"] == pytest.approx(count / size / math.log(2))
    tuned = answer_trainer(
        tmp_path,
        "tuned",
        **{"init_from": trainer.run.path, "model": {}, "sequence_length": 96},
        **{"total_batch_tokens": 768, "steps": 2},
    )
    assert tuned.corpus.tokenizer.vocab_size == trainer.decoder.config.vocab_size
    start = load_checkpoint(trainer.run.path).model.state_dict()
    assert all(value.equal(start[name]) for name, value in tuned.decoder.state_dict().items())
    assert tuned.train_step()["loss"] < 0.7 * before["val_loss"]


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
