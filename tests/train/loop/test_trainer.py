"""The loop without Ray: steps, checkpoints and resuming."""

import json
import math
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mhc_model import MHCError, load_checkpoint
from train.launch import with_start, with_vocabulary
from train.loop import Trainer
from train.records import load_step


def read_rows(config) -> list[dict]:
    path = Path(config.storage, config.name, "metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_to(config, steps, make_trainer, persist_in) -> Trainer:
    """Trains as a new process would: from the newest checkpoint; killed after that of `steps`."""
    trainer = make_trainer(config)
    trainer.resume()
    persist = persist_in(trainer.run)

    def persist_and_stop(step, metrics, directory):
        persist(step, metrics, directory)
        if step == steps < config.steps:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        trainer.fit(persist_and_stop)
    return trainer


def test_two_halves_equal_the_whole_across_an_epoch(
    finished_once, make_config, make_trainer, persist_in
):
    whole, straight = finished_once.config, finished_once
    config = make_config(name="halves")
    blocks = straight.batches.blocks
    assert 8 * 16 < blocks < 16 * 16  # the second half crosses into the second epoch
    run_to(config, 8, make_trainer, persist_in)
    assert len(read_rows(config)) == 8
    resumed = run_to(config, 16, make_trainer, persist_in)
    losses = [[row["loss"] for row in read_rows(c)] for c in (whole, config)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for (name, a), b in zip(
        straight.decoder.named_parameters(), resumed.decoder.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


def test_training_learns_and_writes_one_row_a_step(finished_once):
    config, trainer = finished_once.config, finished_once
    rows = read_rows(config)
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert rows[0]["loss"] == pytest.approx(math.log(config.model.vocab_size), abs=1e-3)
    assert {"val_loss", "val_bpb", "val_loss_gate_0", "val_loss_gate_1"} <= set(rows[7])
    assert "val_loss" not in rows[8]
    assert len(rows[7]["gates"]) == 4
    assert rows[15]["h_res_drift"] > 1e-3
    assert list(Path(trainer.run.path, "tensorboard").iterdir())


def test_only_the_newest_checkpoints_are_kept_and_load_anywhere(finished_once, tiny_corpus):
    trainer = finished_once
    assert trainer.run.steps() == [12, 16]
    checkpoint = load_checkpoint(trainer.run.path)
    assert checkpoint.metadata["step"] == 16
    assert checkpoint.metadata["corpus"] == tiny_corpus.sha256
    for name, value in trainer.decoder.state_dict().items():
        assert checkpoint.model.state_dict()[name].equal(value), name
    assert not list(Path(trainer.run.path).rglob("*.pkl"))
    assert not list(Path(trainer.run.path).rglob("*.pt"))


def test_resuming_drops_rows_and_checkpoints_beyond(finished_copy, make_trainer, persist_in):
    config = finished_copy
    directory = Path(config.storage, config.name)
    before = read_rows(config)
    (directory / "step-000016" / "model" / "model.safetensors").unlink()
    (directory / "step-000099").mkdir()  # cut off while it was copied
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 17, "lo')  # cut off by a kill
    resumed = run_to(config, 16, make_trainer, persist_in)
    assert resumed.step == 16
    assert resumed.run.steps() == [12, 16]
    rows = read_rows(config)
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert [row["loss"] for row in rows] == pytest.approx([r["loss"] for r in before], abs=1e-6)


def test_accumulation_does_not_change_the_step(make_config, make_trainer):
    rows = []
    for device_batch in (2, 16):
        trainer = make_trainer(make_config(name=f"b{device_batch}", device_batch=device_batch))
        rows.append([trainer.train_step() for _ in range(3)])
    for few, many in zip(*rows, strict=True):
        assert few["loss"] == pytest.approx(many["loss"], abs=1e-5)
        assert few["grad_norm"] == pytest.approx(many["grad_norm"], rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_run(make_config, make_trainer):
    trainer = make_trainer(make_config())
    with torch.no_grad():
        trainer.decoder.embedding.weight.fill_(float("nan"))
    with pytest.raises(MHCError, match=r"loss is nan at step 1"):
        trainer.train_step()


@pytest.mark.parametrize(
    ("changes", "diverged"),
    [
        # The weights behind step 1 are finite and huge; the next loss is none.
        ({"checkpoint_every": 1}, 2),
        # The same, saved because its held-out text is the best so far: there is no other.
        ({"checkpoint_every": 99, "eval_every": 1}, None),
        ({"steps": 1, "warmup_steps": 0}, None),
    ],
)
def test_no_checkpoint_holds_what_has_diverged(
    changes, diverged, make_config, make_trainer, persist_in
):
    rates = {f"{kind}lr": 1e30 for kind in ("", "embedding_", "head_", "mhc_", "norm_")}
    trainer = make_trainer(make_config(optimizer=rates, **changes))
    with pytest.raises(MHCError, match=r"is (nan|inf) at step \d: the training has diverged"):
        trainer.fit(persist_in(trainer.run))
    assert trainer.run.steps() == []


def test_a_run_that_diverges_later_says_what_goes_on(
    make_config, make_trainer, persist_in, tiny_corpus, tmp_path
):
    config = make_config(checkpoint_every=2)
    trainer = make_trainer(config)
    step_once = trainer.train_step

    def train_step():
        row = step_once()
        if trainer.step == 6:  # what a learning rate does that is far too high
            with torch.no_grad():
                trainer.decoder.embedding.weight.mul_(1e38)
        return row

    trainer.train_step = train_step
    with pytest.raises(MHCError, match="has diverged") as raised:
        trainer.fit(persist_in(trainer.run))
    # Step 6 would have been saved, and is what has diverged.
    assert trainer.run.steps() == [2, 4]
    with trainer.run.open_step(4) as directory:
        weights = load_step(directory).checkpoint.model.state_dict()
    assert all(weight.abs().max() < 1e3 for weight in weights.values())
    # What the message says works, with the same file.
    said = re.findall(r"--(init-from|sequence-length) (\S+?)[, ]", str(raised.value))
    assert dict(said) == {
        "init-from": f"{trainer.run.location}/step-000004",
        "sequence-length": str(config.context),
    }
    start, length = said[0][1], int(said[1][1])
    changes = {"name": "other", "init_from": start, "sequence_length": length, "steps": 1}
    model = config.model.model_copy(update={"vocab_size": 50_257})  # as the file has it
    again = with_start(config.model_copy(update={**changes, "model": model}))
    resolved = with_vocabulary(again, tiny_corpus.tokenizer.vocab_size)
    other = make_trainer(resolved)
    assert other.train_step()["loss"] < 6.0


def test_a_plain_model_trains_without_gates(make_config, make_trainer):
    config = make_config()
    model = config.model.model_copy(update={"mhc": None})
    trainer = make_trainer(config.model_copy(update={"model": model}))
    trainer.train_step()
    assert set(trainer.evaluate()) == {"val_loss", "val_bpb"}


def test_bfloat16_is_close_to_float32_and_keeps_float32_weights(make_config, make_trainer):
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(make_config(precision=precision))
        losses.append([trainer.train_step()["loss"] for _ in range(4)])
        assert math.isfinite(trainer.evaluate()["val_loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.03)
    assert all(p.dtype == torch.float32 for p in trainer.decoder.parameters())
