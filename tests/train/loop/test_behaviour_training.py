"""Runs whose rows have behaviours: resuming, what the checkpoint says, what the gates mean."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mhc_model import Engine, Request, SamplingParams, load_checkpoint
from mhc_model.settings import validate_settings
from train.config import TrainConfig
from train.data import NO_GROUP, prepare_answers, prepare_corpus
from train.launch import known_behaviours, with_behaviours, with_start, with_vocabulary
from train.loop import ProcessGroup, Trainer
from train.records import RunDirectory, read_rows

BEHAVIOURS = {
    "low": {"gates": [0.0, 0.3]},
    "high": {"gates": [[0.6, 0.7], [0.9, 1.0]]},
    "each": {"gates": [[0.1, 0.2], [0.8, 0.9], [0.4, 0.5], [0.0, 1.0]], "at": 0.5},
}
MODEL = {"n_layers": 2, "n_heads": 2, "d_model": 16, "max_seq_len": 32, "mhc": {}}
RUN = {
    **{"steps": 8, "warmup_steps": 2, "total_batch_tokens": 256, "device_batch": 4},
    **{"gate_noise_share": 0.5, "checkpoint_every": 4, "eval_every": 4},
    **{"workers": {"num_workers": 1}, "behaviours": BEHAVIOURS, "model": MODEL},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Questions whose rows say everything that a row may say, or nothing."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    says: list[dict[str, Any]] = [{"behaviour": name} for name in BEHAVIOURS]
    says += [{}, {"gates": 0.5}, {"gates": [0.1, 0.9]}]
    with path.open("w") as file:
        for number in range(120):
            row = {"question": f"{number}?", "answer": f"{number * 7} is it."}
            file.write(json.dumps(row | says[number % 6]) + "\n")
    return str(path)


def make_trainer(storage: Path, rows: str, group: ProcessGroup | None = None, **fields: Any):
    """What the driver and one worker do, without Ray."""
    data = {"files": [rows], "validation_share": 0.2, "vocab_size": 300}
    values = {"name": "run", "storage": str(storage), "data": data, **RUN, **fields}
    config = with_start(validate_settings(TrainConfig, values, "test"))
    prepare = prepare_answers if config.loss_on == "answers" else prepare_corpus
    corpus = prepare(config.data, known_behaviours(config))
    config = with_behaviours(with_vocabulary(config, corpus.tokenizer.vocab_size), corpus)
    run = RunDirectory(config.storage, config.name)
    return Trainer(config, corpus, run, group or ProcessGroup())


def fit(trainer: Trainer, stop: int | None = None) -> Trainer:
    """To the end, or killed after the checkpoint of a step."""

    def persist(step: int, metrics: dict, directory: Path | None) -> None:
        assert directory is not None
        shutil.copytree(directory, Path(trainer.run.path) / f"step-{step:06d}")
        if step == stop:
            raise KeyboardInterrupt

    trainer.resume()
    with suppress(KeyboardInterrupt):
        trainer.fit(persist)
    return trainer


@pytest.mark.parametrize("loss_on", ["all", "answers"])
def test_two_halves_equal_the_whole_to_the_bit(tmp_path, rows, loss_on):
    fields = {"loss_on": loss_on, "steps": 16}
    whole = fit(make_trainer(tmp_path, rows, name="whole", **fields))
    assert whole.batches.blocks < 16 * 8, "an epoch ends on the way"
    fit(make_trainer(tmp_path, rows, name="halves", **fields), stop=8)
    assert len(read_rows(whole.run)) == 2 * len(read_rows(RunDirectory(str(tmp_path), "halves")))
    halves = fit(make_trainer(tmp_path, rows, name="halves", **fields))
    found, expected = (
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(trainer.run)]
        for trainer in (halves, whole)
    )
    assert found == expected
    for (name, a), b in zip(
        whole.decoder.named_parameters(), halves.decoder.parameters(), strict=True
    ):
        assert torch.equal(a, b), name


TIMES = {"dt", "tokens_per_second", "peak_memory_gib", "mfu"}


def test_workers_share_out_the_gates_of_a_step(tmp_path, rows):
    alone = make_trainer(tmp_path, rows)
    groups = alone.batches.groups(3, 0, 8)
    assert len(groups.unique()) > 2
    whole = alone._gate_noise(3)
    learned = torch.full((4,), 0.9)
    own = whole.mixed_with(learned)
    assert (own[groups == 0] <= 0.3).all()
    named = [found.group for found in alone.corpus.groups]
    assert named == ["low", "high", "each", (0.5,), (0.1, 0.9)]
    for row, number in zip(own, groups.tolist(), strict=True):
        if number == 3:
            assert row.tolist() == [0.5] * 4
        elif number >= 0 and number < 3:
            ranges = alone.config.behaviours[named[number]].ranges
            wide = [pair for pair in ranges for _ in range(4 // len(ranges))]
            assert all(low <= g <= high for g, (low, high) in zip(row, wide, strict=True))
    for rank in (0, 1):
        worker = make_trainer(tmp_path, rows, ProcessGroup(rank, 1))
        assert worker._gate_noise(3).mixed_with(learned).equal(own)


def test_accumulation_does_not_change_the_step(tmp_path, rows):
    steps = []
    for device_batch in (2, 8):
        trainer = make_trainer(tmp_path, rows, device_batch=device_batch)
        steps.append([trainer.train_step() for _ in range(3)])
    for few, many in zip(*steps, strict=True):
        assert few["loss"] == pytest.approx(many["loss"], abs=1e-5)
        assert few["grad_norm"] == pytest.approx(many["grad_norm"], rel=1e-3)


def test_the_loss_of_a_step_is_that_of_each_sequence_under_its_gates(tmp_path, rows):
    trainer = make_trainer(tmp_path, rows, gate_noise_share=0.0)
    trainer.decoder.gate_logits.data += torch.arange(4.0)
    inputs, targets = trainer.batches.sequences(1, 0, 8)
    groups = trainer.batches.groups(1, 0, 8)
    gates = trainer.group_gates.draw(0, 1, groups)
    losses = []
    for row in range(8):
        own = gates[row : row + 1] if groups[row] != NO_GROUP else None
        logits = trainer.decoder(inputs[row : row + 1], own)[0]
        losses.append(torch.nn.functional.cross_entropy(logits, targets[row]))
    expected = torch.stack(losses).mean().item()
    assert trainer.train_step()["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss_on", ["all", "answers"])
def test_held_out_rows_are_evaluated_under_their_own_gates(tmp_path, rows, loss_on):
    trainer = make_trainer(tmp_path, rows, loss_on=loss_on, steps=2)
    for _ in range(2):
        trainer.train_step()
    with torch.no_grad():  # so that gates matter
        for connection in trainer.decoder.connections():
            connection.base.add_(torch.randn_like(connection.base))
    metrics = trainer.evaluate()
    corpus, validation = trainer.corpus, trainer.validation
    assert {name for name in metrics if "." in name} == {
        *("val_loss.low", "val_loss.high", "val_loss.each")
    }
    nats: dict[int, list[float]] = {}
    rows_of = trainer.group_gates.representative
    for item, group in zip(validation.own, validation.own_groups.tolist(), strict=True):
        if loss_on == "answers":
            inputs, targets = map(torch.tensor, item)
        else:
            tokens = corpus.tokenizer.encode(item, bos=True)
            inputs, targets = torch.tensor(tokens[:-1]), torch.tensor(tokens[1:])
        gates = None if group == NO_GROUP else rows_of[group][None]
        with torch.no_grad():
            logits = trainer.decoder(inputs[None], gates)[0]
        loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
        nats.setdefault(group, []).extend(loss[targets >= 0].tolist())
    assert sorted(nats) == [-1, 0, 1, 2, 3, 4]
    everything = [value for own in nats.values() for value in own]
    assert metrics["val_loss"] == pytest.approx(sum(everything) / len(everything), rel=1e-4)
    for number, name in enumerate(BEHAVIOURS):
        mean = sum(nats[number]) / len(nats[number])
        assert metrics[f"val_loss.{name}"] == pytest.approx(mean, rel=1e-4)
    assert abs(metrics["val_loss"] - metrics["val_loss_gate_1"]) > 1e-6, "gates matter"


def test_the_checkpoint_knows_its_behaviours_and_their_shares(tmp_path, rows, capsys):
    samples = {"prompts": ["Question: 7?\nAnswer:"], "max_tokens": 3}
    trainer = fit(make_trainer(tmp_path, rows, samples=samples, steps=4))
    checkpoint = load_checkpoint(trainer.run.path)
    behaviours = checkpoint.model.config.behaviours
    assert set(behaviours) == set(BEHAVIOURS)
    counts = {found.group: found.rows for found in trainer.corpus.groups}
    for name, behaviour in behaviours.items():
        assert behaviour.share == counts[name] / trainer.corpus.documents
        assert 0.1 < behaviour.share < 0.25
        assert behaviour.representative == trainer.config.behaviours[name].representative
    config = json.loads(next(Path(trainer.run.path).glob("step-*/model/config.json")).read_text())
    assert config["mhc_gates"]["behaviours"]["each"]["at"] == 0.5
    # Samples are what its engine writes under each.
    rows_of = read_rows(trainer.run)[-1]["samples"]
    assert [sample.get("behaviour") for sample in rows_of] == [None, *BEHAVIOURS]
    tokenizer = checkpoint.tokenizer
    engine = Engine(trainer.decoder, tokenizer)
    for sample in rows_of:
        prompt = tokenizer.encode(sample["prompt"], bos=True)
        request = Request(prompt, sample.get("behaviour"), SamplingParams(max_tokens=3))
        assert engine.generate([request])[0].text == sample["text"]
    output = capsys.readouterr().out
    shown = repr(samples["prompts"][0])
    assert f"step 4/4 | {shown} -> " in output
    assert f"step 4/4 | each | {shown} -> " in output
    assert " | each " in next(line for line in output.splitlines() if "held-out loss" in line)


def test_a_checkpoint_keeps_its_behaviours_and_gets_more(tmp_path, rows, capsys):
    first = fit(make_trainer(tmp_path, rows, name="first", steps=4))
    few = tmp_path / "few.jsonl"
    low = [{"question": f"{i}?", "answer": f"{i} it is.", "behaviour": "low"} for i in range(100)]
    new = [row | {"behaviour": "new"} for row in low[:50]]
    few.write_text("".join(json.dumps(row) + "\n" for row in [*low, *new]))
    start = {"init_from": first.run.path, "model": {}, "sequence_length": 32, "steps": 4}
    changed = {"low": {"gates": [0.2, 0.4]}, "new": {"gates": [0.5, 0.6]}}
    second = make_trainer(tmp_path, str(few), name="second", **start, behaviours=changed)
    assert (
        "behaviour low has gates (0.0, 0.3) in the model; those of the" in capsys.readouterr().out
    )
    fit(second)
    found = load_checkpoint(second.run.path).model.config.behaviours
    assert set(found) == {*BEHAVIOURS, "new"}
    assert found["low"].gates == (0.2, 0.4)
    assert found["low"].share == pytest.approx(2 / 3, abs=0.1)
    assert found["new"].share == pytest.approx(1 / 3, abs=0.1)
    for name in ("high", "each"):
        assert found[name] == first.config.model.behaviours[name]
    # Without a word of them in the configuration, those of the checkpoint are known.
    start |= {"init_from": second.run.path, "behaviours": {}}
    third = make_trainer(tmp_path, str(few), name="third", **start)
    assert third.config.model.behaviours == found
    # What was resolved can be given again, and goes on.
    values = second.config.model_dump()
    assert with_start(validate_settings(TrainConfig, values, "test")).data == second.config.data


def test_a_plain_model_learns_the_same_rows_in_words(tmp_path, rows):
    kept = tmp_path / "named.jsonl"
    lines = [line for line in Path(rows).read_text().splitlines() if "gates" not in line]
    kept.write_text("\n".join(lines) + "\n")
    data = {"files": [str(kept)], "validation_share": 0.2, "vocab_size": 300, "style_words": True}
    plain = {**MODEL, "mhc": None}
    trainer = make_trainer(tmp_path, rows, model=plain, data=data)
    assert trainer.group_gates is None
    assert trainer.config.model.behaviours == {}
    assert any("? (low)\nAnswer:" in text for text in trainer.corpus.validation)
    trainer.train_step()
    assert set(trainer.evaluate()) == {"val_loss", "val_bpb"}


WORDS = {"quiet": "shh, be still", "loud": "HEY YOU THERE"}


def test_gates_come_to_mean_what_their_rows_are(tmp_path):
    """Nothing but the gates tells the two kinds of rows apart."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(300):
            for behaviour, answer in WORDS.items():
                row = {"question": f"{number}?", "answer": answer, "behaviour": behaviour}
                file.write(json.dumps(row) + "\n")
    trainer = make_trainer(
        tmp_path,
        str(path),
        **{"loss_on": "answers", "steps": 100, "gate_noise_share": 0.0, "device_batch": 16},
        **{"eval_every": 1000, "checkpoint_every": 1000, "sequence_length": 16},
        behaviours={"quiet": {"gates": [0.0, 0.3]}, "loud": {"gates": [0.7, 1.0]}},
        model={**MODEL, "d_model": 32, "mhc": {"stream_embedding_std": 0.3, "scale_init": 0.01}},
        optimizer={"hidden": "adamw", "lr": 0.01, "mhc_lr": 0.03},
    )
    fit(trainer)
    engine = Engine(trainer.decoder, trainer.corpus.tokenizer)
    prompt = trainer.corpus.tokenizer.encode("Question: 7?\nAnswer:", bos=True)
    sampling = SamplingParams(max_tokens=8)
    for behaviour, answer in WORDS.items():
        completion = engine.generate([Request(prompt, behaviour, sampling)])[0]
        assert completion.text.startswith(f" {answer}"), behaviour
    # Under the other behaviour's gates the same rows are unlikely.
    gates, validation = trainer.group_gates.representative, trainer.validation
    for number in (0, 1):
        places = (validation.own_groups == number).nonzero()[:, 0].tolist()
        own, other = (
            validation._own_bits(trainer.decoder, places, gates[group].expand(len(places), -1))
            for group in (number, 1 - number)
        )
        assert own < 0.5 * other
